"""Photos and annotations in COCO's layout for training, checked before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool

from ...datasets.coco import Broken, read_coco
from ...datasets.records import CocoObject, CocoPhoto
from ...errors import DeformscopeError
from .sample import Sample


class CocoFolder:
    """One split of a folder in COCO's layout, read and checked by :func:`~deformscope.datasets.coco.read_coco`.

    ``problems`` lists what was left out. Raises DeformscopeError for broken annotations or photos that are not left
    out.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        masks: bool = False,
        broken: Broken = "refuse",
        empty: Literal["keep", "drop"] = "keep",
    ) -> None:
        self._data, self._masks = read_coco(folder, split, broken=broken, masks=masks), masks
        self.problems = self._data.problems
        self._photos = self._data.photos
        if empty == "drop":
            self._photos = tuple(photo for photo in self._photos if not all(one.ignored for one in photo.objects))
        if not self._photos:
            raise DeformscopeError(f"{self._data.annotations}: no photo to use; expected some with objects")
        self.names: tuple[str, ...] = self._data.names
        self.sizes: Sequence[tuple[int, int]] = [photo.size for photo in self._photos]

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def identity(self) -> str:
        """The digest of the annotation file and the number of photos used."""
        return f"{self._data.digest[:16]}-{len(self)}"

    def load(self, index: int) -> Sample:
        """One photo and its objects, with boxes clipped to it. Raises DeformscopeError when the file is damaged."""
        photo = self._photos[index]
        objects = photo.objects
        boxes = torch.tensor([one.bbox for one in objects], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        height, width = photo.size
        masks = None
        if self._masks:
            found = [_mask(photo, one) for one in objects]
            masks = torch.from_numpy(np.array(found, dtype=bool).reshape(-1, *photo.size))
        return Sample(
            torch.from_numpy(photo.read()).permute(2, 0, 1),
            boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2)),
            torch.tensor([one.label for one in objects], dtype=torch.int64),
            torch.tensor([one.ignored for one in objects], dtype=torch.bool),
            masks,
        )

    def truth(self) -> dict[str, Any]:
        """The annotations of the photos used, in COCO's format."""
        return self._data.truth(self._photos)


def _mask(photo: CocoPhoto, one: CocoObject) -> Bool[np.ndarray, "h w"]:
    """The mask of an object; for a crowd without mask, its box."""
    mask = photo.mask(one)
    if mask is None:
        mask = np.zeros(photo.size, dtype=bool)
        x0, y0, x1, y1 = (round(value) for value in photo.corners(one))
        mask[y0:y1, x0:x1] = True
    return mask

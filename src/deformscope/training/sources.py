"""Photos with objects: in COCO's layout, with masks that GrabCut makes, and prepared for a network.

Boxes are xyxy, labels 0-based. A network that learns from masks made of boxes becomes better than they are, since what
is wrong with them differs from photo to photo (Khoreva et al., Simple Does It, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ..datasets.coco import Broken, read_coco
from ..datasets.records import CocoObject, CocoPhoto
from ..datasets.values import decode, run_lengths
from ..detectors.box_masks import grab_cut, opencv
from ..detectors.detector import Batch
from ..detectors.preparation import padded
from ..errors import DeformscopeError
from ..fields.places import Placement


@dataclass(frozen=True)
class Sample:
    """A photo and its objects, in photo px."""

    image: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "t 4"]
    labels: Int[Tensor, " t"]
    ignore: Bool[Tensor, " t"]
    """Crowds, difficult objects and slivers at a border, which count neither as objects nor as background."""
    masks: Bool[Tensor, "t h w"] | None = None

    def pick(self, kept: Tensor) -> Sample:
        """Select objects, by index or by a bool for each."""
        masks = None if self.masks is None else self.masks[kept]
        return Sample(self.image, self.boxes[kept], self.labels[kept], self.ignore[kept], masks)


@runtime_checkable
class Source(Protocol):
    """Photos with objects, by index."""

    names: tuple[str, ...]
    """Class names, in the order of the labels."""
    sizes: Sequence[tuple[int, int]]
    """Height and width of every photo, px."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample:
        """Load one photo and its objects."""
        ...

    def truth(self) -> dict[str, Any]:
        """All annotations in COCO's format: images in the order of the indices, categories by name."""
        ...

    @property
    def identity(self) -> str:
        """A text that changes when the data change."""
        ...


@dataclass(frozen=True)
class Item:
    """A sample for the network: normalised, resized, objects in network px; or the trunk's cached feature maps."""

    target: dict[str, Tensor]
    image: Float[Tensor, "3 h w"] | None = None
    placement: Placement | None = None
    maps: dict[str, Tensor] | None = None


def collate(items: Sequence[Item]) -> Batch:
    """Collate items to a batch; images are padded with zeros at the right and bottom to the largest."""
    targets = [item.target for item in items]
    if items[0].maps is not None:
        stacked = {name: torch.stack([item.maps[name] for item in items if item.maps]) for name in items[0].maps}
        return Batch(targets, maps={name: value.float() for name, value in stacked.items()})
    images = padded([item.image for item in items if item.image is not None])
    return Batch(targets, images, tuple(item.placement for item in items if item.placement is not None))


Prepare = Callable[[Sequence[np.ndarray], int | None], tuple[Tensor, list[Placement]]]
"""A function of RGB uint8 photos ``[h w 3]`` and a shorter side (None: as for detection), which returns the network's
input and how each photo lies in it."""


def prepared(sample: Sample, prepare: Prepare, shorter_side: int | None = None, *, masks: bool = True) -> Item:
    """Resize and normalise the sample by the network's own preparation, with its objects; ``masks`` keeps masks."""
    batch, (placement,) = prepare([sample.image.permute(1, 2, 0).numpy()], shorter_side)
    scale = torch.tensor([placement.scale[1], placement.scale[0]] * 2)
    target = {"boxes": sample.boxes * scale, "labels": sample.labels, "ignore": sample.ignore}
    if masks and sample.masks is not None:
        whole = sample.masks[:, None].float()
        resized = torch.nn.functional.interpolate(whole, size=placement.network_size, mode="nearest")
        target["masks"] = resized[:, 0] > 0
    return Item(target, batch[0], placement)


def boxes_of(masks: Bool[Tensor, "t h w"]) -> Float[Tensor, "t 4"]:
    """Boxes around masks, xyxy; pixel j covers [j, j + 1)."""
    edges = []
    for axis in (1, 2):  # columns with a pixel, then rows
        held = masks.bool().any(dim=axis).int()
        edges.append((held.argmax(dim=1), held.shape[1] - held.flip(1).argmax(dim=1)))
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).float()


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


class MadeOfBoxes:
    """The photos of another source, with masks by :func:`~deformscope.detectors.box_masks.grab_cut` in their boxes.

    Raises DeformscopeError without OpenCV. Masks are made once in each process.
    """

    def __init__(self, photos: Source) -> None:
        opencv()
        self._photos = photos
        self.names: tuple[str, ...] = photos.names
        self.sizes: Sequence[tuple[int, int]] = photos.sizes
        self.problems: Any = getattr(photos, "problems", ())
        self._known: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self._photos)

    @property
    def identity(self) -> str:
        """That of the photos: their boxes and views are the same."""
        return self._photos.identity

    def load(self, index: int) -> Sample:
        """One photo, its objects, and their masks."""
        sample = self._photos.load(index)
        size = sample.image.shape[1], sample.image.shape[2]
        if index not in self._known:
            photo = np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())
            self._known[index] = [run_lengths(grab_cut(photo, box)) for box in sample.boxes.tolist()]
        masks = [decode(code, size) for code in self._known[index]]
        return replace(sample, masks=torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size)))

    def truth(self) -> dict[str, Any]:
        """The annotations of the photos."""
        return self._photos.truth()

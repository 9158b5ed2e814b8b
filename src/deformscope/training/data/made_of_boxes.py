"""Photos whose masks GrabCut makes of the annotated boxes, so that masks are learned from boxes alone.

A network that learns from such masks becomes better than they are, since what is wrong with them differs from photo to
photo (Khoreva et al., Simple Does It, CVPR 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...datasets.values import decode, run_lengths
from ...detectors.box_masks import grab_cut, opencv
from .sample import Sample, Source


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

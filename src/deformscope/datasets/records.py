"""The records of an annotation file: photos, their objects, and problems."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from ..errors import DeformscopeError
from ..photo import read
from .orientation import Box, turned_mask
from .segmentation import Segmentation, decode
from .values import Identifier, shown


@dataclass(frozen=True)
class Problem:
    """A problem of an annotation or photo."""

    file_name: str
    """Name of the photo, or the place in the file (``annotations[17]``) if that is not known."""
    annotation: Identifier | None
    what: str

    def __str__(self) -> str:
        of = "" if self.annotation is None else f", annotation {shown(self.annotation)}"
        return f"{shown(self.file_name)}{of}: {self.what}"


@dataclass(frozen=True)
class Category:
    """A class of objects."""

    id: Identifier
    name: str


@dataclass(frozen=True, slots=True)  # a large data set has a million objects
class CocoObject:
    """One annotated object."""

    id: Identifier
    label: int
    """Index of its category, sorted by id."""
    bbox: Box
    """x, y, width, height as annotated, in px of the upright photo; may extend beyond it by a pixel from rounding."""
    ignored: bool
    """Counts neither as right nor as wrong: a crowd (``iscrowd``, ``ignore``) or a difficult object (VOC's
    ``difficult``)."""
    noted_area: float | None = None
    """``area``, px²; None if not given."""
    segmentation: Segmentation = None
    """As annotated, in the pixels of the annotation; None if not given."""


@dataclass(frozen=True)
class CocoPhoto:
    """One photo and the objects on it."""

    id: Identifier
    file_name: str
    path: Path
    size: tuple[int, int]
    """Height and width of the upright photo, px."""
    turn: int
    """The EXIF orientation that turns the annotations upright; 1 if they are upright."""
    objects: tuple[CocoObject, ...]

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        """Read the photo, upright. Raises DeformscopeError with the file's name if it is damaged."""
        array = read(self.path)
        if array.shape[:2] != self.size:
            (h, w), (nh, nw) = array.shape[:2], self.size
            raise DeformscopeError(f"{self.path}: {w}×{h} px, and {nw}×{nh} before; get the file again")
        return array

    def corners(self, one: CocoObject) -> tuple[float, float, float, float]:
        """The box of an object, x0, y0, x1, y1, clipped to the photo, px."""
        (height, width), (x, y, w, h) = self.size, one.bbox
        return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))

    def mask(self, one: CocoObject) -> Bool[np.ndarray, "h w"] | None:
        """The mask of an object; None if it has none."""
        if one.segmentation is None:
            return None
        noted = self.size[::-1] if self.turn >= 5 else self.size
        return turned_mask(decode(one.segmentation, noted), self.turn)

    def area(self, one: CocoObject) -> float:
        """The annotated area, or that of the mask, or of the box, px²."""
        if one.noted_area is not None:
            return one.noted_area
        mask = self.mask(one)
        return one.bbox[2] * one.bbox[3] if mask is None else float(mask.sum())

"""What an annotation file says, as records: photos, the objects on them, and what is wrong with either."""

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
    """What is wrong with one annotation or photo."""

    file_name: str
    """Of the photo; or the place in the file (``annotations[17]``) where that is not known."""
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


@dataclass(frozen=True, slots=True)  # a large data set has a million of them
class CocoObject:
    """One annotated object."""

    id: Identifier
    label: int
    """The place of its category among the data set's, which are sorted by id."""
    bbox: Box
    """x, y, width, height as noted, upright photo px; rounding may let it leave the photo by a pixel."""
    ignored: bool
    """Neither right nor wrong: a crowd (``iscrowd``, ``ignore``) or a difficult object (VOC's ``difficult``)."""
    noted_area: float | None = None
    """``area``, px²; None where there is none."""
    segmentation: Segmentation = None
    """As noted, in the pixels in which the photo was annotated; None where there is none."""


@dataclass(frozen=True)
class CocoPhoto:
    """One photo and the objects on it."""

    id: Identifier
    file_name: str
    path: Path
    size: tuple[int, int]
    """Height and width of the upright photo, px."""
    turn: int
    """The EXIF orientation that turns what is noted upright; 1 where it is upright already."""
    objects: tuple[CocoObject, ...]

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        """The photo itself, upright. Raises DeformscopeError, naming the file, when it is damaged."""
        array = read(self.path)
        if array.shape[:2] != self.size:
            (h, w), (nh, nw) = array.shape[:2], self.size
            raise DeformscopeError(f"{self.path}: {w}×{h} px, and {nw}×{nh} before; get the file again")
        return array

    def corners(self, one: CocoObject) -> tuple[float, float, float, float]:
        """An object's box x0, y0, x1, y1, inside the photo, px."""
        (height, width), (x, y, w, h) = self.size, one.bbox
        return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))

    def mask(self, one: CocoObject) -> Bool[np.ndarray, "h w"] | None:
        """An object's mask; None where it has none."""
        if one.segmentation is None:
            return None
        noted = self.size[::-1] if self.turn >= 5 else self.size
        return turned_mask(decode(one.segmentation, noted), self.turn)

    def area(self, one: CocoObject) -> float:
        """As noted, else the mask's, else the box's, px²."""
        if one.noted_area is not None:
            return one.noted_area
        mask = self.mask(one)
        return one.bbox[2] * one.bbox[3] if mask is None else float(mask.sum())

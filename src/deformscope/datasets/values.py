"""Values of an annotation file from any exporter: numbers, ids, flags, and segmentations.

Segmentations are polygons, run lengths or compressed run lengths. pycocotools and faster-coco-eval do not check them:
they take a polygon of four numbers as a box, and write run lengths beyond the mask. So everything is checked before.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..errors import DeformscopeError

Identifier = int | float | str
"""The id of a photo, object or category: an integer in COCO's files, text in many others."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = _short.maxdict = 8
_short.maxlong = 30


def shown(value: Any) -> str:
    """A value as one short line, for a message."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 200 else _short.repr(value)


def number(value: Any) -> float | None:
    """A finite number, or a text of one (``"12.5"``); None for others, including true and false."""
    if isinstance(value, str):
        value = float(value) if len(value) < 100 and _NUMBER.fullmatch(value.strip()) else None
    if type(value) not in (int, float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A positive integer, also as text or as 640.0; None for others."""
    found = number(value)
    return int(found) if found is not None and found >= 1 and found == int(found) else None


def flag(value: Any) -> bool | None:
    """0 or 1, also as text or as true and false; null is 0. None for others."""
    if value is None or isinstance(value, bool):
        return bool(value)
    found = number(value)
    return bool(found) if found in (0, 1) else None


def text(value: Any) -> str | None:
    """A text that can be printed and written to files; None for others, including the empty one."""
    if not isinstance(value, str) or not value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # unpaired surrogate
        return None
    return value


def identifier(value: Any) -> Identifier | None:
    """The id, 7.0 as 7; None for values that identify nothing (null, true, NaN, lists)."""
    if isinstance(value, str):
        return text(value)
    if type(value) is float:
        return None if not math.isfinite(value) else int(value) if value == int(value) else value
    return value if type(value) is int else None


def rank(value: Identifier) -> tuple[int, float, str]:
    """The key for sorting ids: numbers, also as text, before other texts."""
    if isinstance(value, str):
        return (0, int(value), value) if _WHOLE.fullmatch(value) else (1, 0, value)
    return (0, value, "")


class Index:
    """Index by id. An unknown id is looked up as text, if only one has that text."""

    def __init__(self, ids: Sequence[Identifier | None]) -> None:
        self._places: dict[Identifier, int] = {}
        self._texts: dict[str, int | None] = {}
        for place, one in enumerate(ids):
            if one is None:
                continue
            self._places.setdefault(one, place)
            written = str(one)
            self._texts[written] = None if written in self._texts else place

    def find(self, value: Any) -> int | None:
        """The index of an id, or None."""
        one = identifier(value)
        if one is None:
            return None
        place = self._places.get(one)
        return self._texts.get(str(one)) if place is None else place


Segmentation = Any
"""Polygons ``[x, y, x, y, …]``, or ``{"size": [h, w], "counts": …}``; None if not given."""


class MalformedError(ValueError):
    """The problem of a value, in words that follow the name of file and annotation."""


def checked(segmentation: Any, size: tuple[int, int]) -> Segmentation:
    """Check a segmentation for :func:`decode`; None for null or an empty list.

    Polygons with fewer than three corners are left out if there are others. Raises MalformedError.
    """
    if segmentation is None or segmentation in ([], {}, [[]]):
        return None
    if isinstance(segmentation, list):
        return _polygons(segmentation, size)
    if isinstance(segmentation, dict):
        return _run_lengths(segmentation, size)
    raise MalformedError(f"segmentation {shown(segmentation)}: expected polygons or run lengths")


def decode(segmentation: Segmentation, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask of a segmentation that was :func:`checked` for this size (height, width)."""
    library = mask_library()
    if isinstance(segmentation, list):
        code = library.merge(library.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        code = library.frPyObjects(segmentation, *size)
    else:
        code = segmentation
    return library.decode(code).astype(bool)


def run_lengths(mask: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """A mask as compressed run lengths, for JSON."""
    code = mask_library().encode(np.asfortranarray(mask.astype(np.uint8)))
    return code | {"counts": code["counts"].decode() if isinstance(code["counts"], bytes) else code["counts"]}


def mask_library() -> Any:
    """COCO's mask functions, from the installed library."""
    try:
        from pycocotools import mask

        return mask
    except ImportError:
        pass
    try:
        from faster_coco_eval.core import mask

        return mask
    except ImportError:
        raise DeformscopeError(
            "masks need pycocotools; run: pip install 'deformscope[score]', or leave the masks out"
        ) from None


def _polygons(polygons: list[Any], size: tuple[int, int]) -> list[list[float]]:
    kept = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise MalformedError(f"segmentation {shown(polygons)}: expected polygons, each a list x, y, x, y, …")
        corners = polygon
        if not set(map(type, polygon)) <= {int, float}:
            corners = [number(value) for value in polygon]
        if None in corners or not _finite(corners):
            raise MalformedError(f"polygon {shown(polygon)}: expected numbers x, y, x, y, …")
        if len(corners) % 2:
            raise MalformedError(f"polygon {shown(polygon)}: {len(corners)} numbers; expected x and y of each corner")
        if len(corners) >= 6:
            kept.append(_near(corners, size))
    if not kept:
        raise MalformedError(f"segmentation {shown(polygons)}: expected polygons of at least three corners")
    height, width = size
    # If everything is left, right, above or below of the photo.
    if all(max(p[::2]) <= 0 or min(p[::2]) >= width or max(p[1::2]) <= 0 or min(p[1::2]) >= height for p in kept):
        raise MalformedError(f"segmentation {shown(polygons)}: outside the photo, {width}×{height} px")
    return kept


def _finite(values: list[float]) -> bool:
    try:
        return math.isfinite(sum(values))
    except OverflowError:  # integers that are too large for a float
        return False


def _near(polygon: list[float], size: tuple[int, int]) -> list[float]:
    """Clip corners far beyond the photo, to each of which the libraries draw a line, pixel by pixel."""
    low, high = -float(max(size)), 2.0 * max(size)
    inside = low <= min(polygon) and max(polygon) <= high
    return polygon if inside else [min(max(value, low), high) for value in polygon]


def _run_lengths(code: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Run lengths along columns, background first."""
    noted = code.get("size")
    if not isinstance(noted, (list, tuple)) or [number(side) for side in noted] != [float(side) for side in size]:
        raise MalformedError(f"run lengths of size {shown(noted)}: expected {list(size)}, the photo's height and width")
    counts = code.get("counts")
    if isinstance(counts, list):
        runs = [number(run) for run in counts]
        if any(run is None or run < 0 or run != int(run) for run in runs):
            raise MalformedError(f"run lengths {shown(counts)}: expected whole numbers, at least 0")
        lengths = [int(run) for run in runs if run is not None]
        kept: Any = lengths
    elif isinstance(counts, (str, bytes)):
        kept = counts if isinstance(counts, str) else counts.decode("latin-1")
        lengths = _decompressed(kept)
    else:
        raise MalformedError(f"run lengths {shown(counts)}: expected a list or COCO's text")
    if sum(lengths) != size[0] * size[1]:
        raise MalformedError(f"run lengths of {sum(lengths)} pixels: expected {size[0] * size[1]}, the photo's")
    if not any(lengths[1::2]):
        raise MalformedError("run lengths that cover no pixel: expected a mask")
    return {"size": list(size), "counts": kept}


def _decompressed(counts: str) -> list[int]:
    """Decode COCO's text: five bits per character, least significant first; the third run and later ones as
    differences."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift > 30:  # the library reads into 64 bits without a check
            raise MalformedError(f"run lengths {shown(counts)}: not COCO's code")
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            if value < 0:
                raise MalformedError(f"run lengths {shown(counts)}: not COCO's code")
            runs.append(value)
            value, shift = 0, 0
    if shift:
        raise MalformedError(f"run lengths {shown(counts)}: cut off")
    return runs

"""COCO's segmentations: polygons, run lengths and compressed run lengths, to masks and back.

pycocotools and faster-coco-eval do not check their input: they take a polygon of four numbers as a box, and write run
lengths beyond the mask. So everything is checked before.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..errors import DeformscopeError
from .values import number, shown

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

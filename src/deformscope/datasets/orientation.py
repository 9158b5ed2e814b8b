"""EXIF orientation: photos are upright, but some annotations are in the pixels as stored in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ..errors import warnings_ignored
from ..photo import MOST_PIXELS
from .segmentation import MalformedError

ORIENTATION = 0x0112
"""The EXIF tag."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Header:
    """Size and orientation from a photo's file, without its pixels."""

    stored: tuple[int, int]
    """Height and width as stored in the file, px."""
    orientation: int
    """EXIF orientation: 1 upright, 2-4 mirrored or upside down, 5-8 also rotated by 90°."""

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the photo that :func:`deformscope.photo.read` returns, px."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def header(path: Path) -> Header:
    """Read size and orientation of a photo. Raises MalformedError for other files."""
    from PIL import Image

    try:
        with warnings_ignored(), Image.open(path) as image:
            width, height = image.size
            tags = getattr(image, "tag_v2", None)
            if image.format == "TIFF" and tags is not None:
                # Some versions of Pillow return the upright size of a TIFF.
                width, height = int(tags[256]), int(tags[257])
            try:
                orientation = image.getexif().get(ORIENTATION, 1)
            except Exception:  # invalid tags; the pixels of the photo may be fine
                orientation = 1
    except PermissionError:
        raise MalformedError("may not be read; check the file's permissions") from None
    except Exception as error:  # Pillow raises many kinds of errors for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        known = "cannot identify" not in reason and "exceeds limit" not in reason
        raise MalformedError(f"no photo that can be read{f' ({reason[:80]})' if known else ''}") from None
    if width * height > MOST_PIXELS:
        raise MalformedError(f"larger than {MOST_PIXELS / 1e6:.0f} megapixels; shrink it first")
    known_turn = type(orientation) is int and 1 <= orientation <= 8
    return Header((height, width), orientation if known_turn else 1)


def turned_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Convert a box xywh from the stored photo, of ``size`` (height, width), to the upright photo."""
    height, width = size
    x, y, w, h = box
    if orientation in (2, 3, 7, 8):  # mirrored horizontally
        x = width - (x + w)
    if orientation in (3, 4, 6, 7):  # mirrored vertically
        y = height - (y + h)
    return (y, x, h, w) if orientation >= 5 else (x, y, w, h)


def turned_mask(mask: Shaped[np.ndarray, "a b"], orientation: int) -> Shaped[np.ndarray, "c d"]:
    """Convert a mask from the stored photo to the upright one."""
    if orientation in (2, 3, 7, 8):
        mask = mask[:, ::-1]
    if orientation in (3, 4, 6, 7):
        mask = mask[::-1]
    return np.ascontiguousarray(mask.T if orientation >= 5 else mask)


def told(header: Header, noted: tuple[int, int] | None) -> bool | None:
    """Whether annotations with this size are in the photo as stored (True) or upright (False); None if both sizes
    match.

    Raises MalformedError if neither does.
    """
    if noted is not None and noted not in (header.stored, header.upright):
        (h, w), (nh, nw) = header.upright, noted
        raise MalformedError(f"{w}×{h} px where the annotations say {nw}×{nh}; get both from the same place")
    if noted is None or header.stored == header.upright:
        return None
    return noted == header.stored

"""Convert photos to a detector's input, exact to the last grey level: resize, channel order, normalisation, padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError
from ..fields.places import Pair, Placement
from .options import chosen_sides

Colour = tuple[float, float, float]

STRIP_ROWS = 512
FIXED_POINT = 2048
"""OpenCV's bilinear weights on uint8 are multiples of 1/2048."""


@dataclass(frozen=True)
class Preparation:
    """How a detector prepares its photos."""

    mean: Colour
    """In the channel order of the network."""
    std: Colour
    bgr: bool
    """The network's channel order is BGR."""
    antialias: bool
    """Use Pillow's bilinear resize, which averages when shrinking (Detectron2), instead of OpenCV's, which does not."""
    shorter_side: int = 800
    longer_side: int = 1333
    divisor: int = 32

    def __post_init__(self) -> None:
        chosen_sides(self.shorter_side, self.longer_side)
        if self.divisor < 1:
            raise DeformscopeError(f"divisor={self.divisor}: expected at least 1")


def prepare(photos: Sequence[np.ndarray], how: Preparation) -> tuple[Tensor, list[Placement]]:
    """Convert RGB uint8 photos ``[h w 3]`` to a batch ``[n 3 h w]``, zero-padded at the bottom and right; also returns
    how each lies in it."""
    images, placements = [], []
    for photo in photos:
        size = target_size((photo.shape[0], photo.shape[1]), how)
        resized = resize_pillow(photo, size) if how.antialias else resize_opencv(photo, size)
        # Copied, since flipped views have negative strides, which torch does not support.
        image = torch.from_numpy(np.ascontiguousarray(resized[..., ::-1] if how.bgr else resized)).permute(2, 0, 1)
        images.append((image.float() - _column(how.mean)) / _column(how.std))
        scale = size[0] / photo.shape[0], size[1] / photo.shape[1]
        placements.append(Placement((photo.shape[0], photo.shape[1]), scale))
    return padded(images, how.divisor), placements


def padded(images: Sequence[Tensor], divisor: int = 1) -> Float[Tensor, "n 3 h w"]:
    """Images ``[3 _ _]`` as one batch, padded with zeros at the bottom and right to multiples of ``divisor``."""
    height, width = (-(-max(image.shape[axis] for image in images) // divisor) * divisor for axis in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def target_size(size: Pair, how: Preparation) -> Pair:
    """Height and width to which a photo of ``size`` is resized: same aspect ratio, within both sides, half rounded
    up."""
    height, width = size
    shorter, longer = min(size), max(size)
    if how.antialias:
        # Detectron2 scales the shorter side first, and the result again if it is too long, which rounds differently.
        wanted = [side * (how.shorter_side / shorter) for side in size]
        wanted[size.index(shorter)] = float(how.shorter_side)
        if max(wanted) > how.longer_side:
            factor = how.longer_side / max(wanted)
            wanted = [side * factor for side in wanted]
    else:
        factor = min(how.longer_side / longer, how.shorter_side / shorter)
        wanted = [height * factor, width * factor]
    return max(1, int(wanted[0] + 0.5)), max(1, int(wanted[1] + 0.5))


def resize_opencv(image: np.ndarray, size: Pair) -> np.ndarray:
    """``cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)`` on uint8 ``[h w c]``, to the bit.

    Weights of 11 bits, rows first, the sums truncated between (OpenCV's VResizeLinear).
    """
    if image.shape[:2] == size:
        return image
    top, bottom, above, below = _corners(image.shape[0], size[0], at_border=False)
    left, right, before, after = _corners(image.shape[1], size[1], at_border=True)

    def along_x(rows: np.ndarray) -> np.ndarray:
        lines = image[rows]  # only the rows that are needed: a photo may be a hundred times as large as the result
        return (lines[:, left] * before[:, None] + lines[:, right] * after[:, None]) >> 4

    blended = ((along_x(top) * above[:, None, None]) >> 16) + ((along_x(bottom) * below[:, None, None]) >> 16)
    return ((blended + 2) >> 2).clip(0, 255).astype(np.uint8)


def resize_pillow(image: np.ndarray, size: Pair) -> np.ndarray:
    """Pillow's bilinear resize of uint8 ``[h w 3]``."""
    from PIL import Image

    if image.shape[:2] == size:
        return image
    # Rows first, in strips, as Pillow does it with the whole: a large photo would be copied into its memory.
    strips = (Image.fromarray(image[top : top + STRIP_ROWS]) for top in range(0, len(image), STRIP_ROWS))
    narrow = np.concatenate(
        [np.asarray(one.resize((size[1], one.height), Image.Resampling.BILINEAR)) for one in strips]
    )
    return np.asarray(Image.fromarray(narrow).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def _corners(before: int, after: int, at_border: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The two neighbours of every output pixel along one axis and their weights, in 1/2048.

    Beyond the centres of the outermost pixels, OpenCV gives all weight to one neighbour along x, but along y mixes the
    same row with itself, where the truncation has an effect.
    """
    place = ((np.arange(after) + 0.5) * (before / after) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    part = place - first.astype(np.float32)
    if at_border:
        part[(first < 0) | (first >= before - 1)] = 0
        first = first.clip(0, before - 1)
    weights = [np.rint(share * FIXED_POINT).astype(np.int32) for share in (1 - part, part)]
    return first.clip(0, before - 1), (first + 1).clip(0, before - 1), weights[0], weights[1]


def _column(colour: Colour) -> Tensor:
    return torch.tensor(colour).view(3, 1, 1)

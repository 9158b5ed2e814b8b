"""The sampling points of a deformable convolution as four rows of the channels-last map each, with weights.

The map is stored in a table with one row per cell, two rows of zero cells above each image and two columns of zero
cells at its right; a step to the left of column 0 reads a zero at the end of the line above. Sampling points are
clamped to these zeros, so that borders, points far outside and NaN need no special case: they read zeros and have no
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .geometry import Geometry

MARGIN = 2
"""Width of the zeros that a point outside may read: its corner floor(y) and the next one."""


@dataclass(frozen=True)
class Block:
    """A block of rows of output cells, of one or more images, that is computed at once."""

    images: slice
    rows: slice

    def of(self, tensor: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c r w"]:
        """The block's part of a tensor over all output cells (a view)."""
        return tensor[self.images, :, self.rows]


@dataclass(frozen=True)
class Samples:
    """The s = p·g·K samples of a block of p output cells, with what their gradients need."""

    index: Int[Tensor, "s 4"]
    """Rows of the table: top left, top right, bottom left, bottom right."""
    weights: Float[Tensor, "s 4"]
    """Bilinear, times the modulation."""
    down: Float[Tensor, "gk p"]
    """Fraction of the way from the top to the bottom corners."""
    right: Float[Tensor, "gk p"]
    """Fraction of the way from the left to the right corners."""
    modulation: Float[Tensor, "gk p"] | None


def blocks(geometry: Geometry, n: int, bytes_a_cell: int, limit: int) -> Iterator[Block]:
    """Cut the output cells of n images into blocks of whole rows, each of about ``limit`` bytes."""
    h, w = geometry.output_size
    image = h * w * bytes_a_cell
    if image <= limit:
        step = limit // image
        for first in range(0, n, step):
            yield Block(slice(first, min(first + step, n)), slice(0, h))
        return
    pieces = min(h, -(-image // limit))
    step = -(-h // pieces)
    for image_index in range(n):
        for first in range(0, h, step):
            yield Block(slice(image_index, image_index + 1), slice(first, min(first + step, h)))


def to_table(input: Float[Tensor, "n c height width"], geometry: Geometry, dtype: torch.dtype) -> Tensor:
    """The table ``[rows c]`` of a map, in ``dtype``. Its first rows are zeros."""
    n, channels = input.shape[:2]
    height, width = geometry.input_size
    pitch = width + MARGIN
    table = input.new_zeros((n * (height + MARGIN) + MARGIN) * pitch + MARGIN, channels, dtype=dtype)
    _cells(table, geometry, n).copy_(input.permute(0, 2, 3, 1))
    return table


def from_table(table: Float[Tensor, "rows c"], geometry: Geometry, like: Tensor) -> Float[Tensor, "n c height width"]:
    """The map from its table, in the dtype and memory format of ``like``."""
    map = torch.empty_like(like)
    return map.copy_(_cells(table, geometry, len(like)).permute(0, 3, 1, 2))


def _cells(table: Float[Tensor, "rows c"], geometry: Geometry, n: int) -> Float[Tensor, "n height width c"]:
    height, width = geometry.input_size
    pitch = width + MARGIN
    lines = table[_origin(pitch) :].view(n, height + MARGIN, pitch, table.shape[1])
    return lines[:, :height, :width]


def _origin(pitch: int) -> int:
    """Row of the table that holds cell (0, 0) of the first image."""
    return MARGIN * pitch + MARGIN


def sample(
    geometry: Geometry,
    block: Block,
    offset: Float[Tensor, "b moves r w"],
    mask: Float[Tensor, "b gk r w"] | None,
    rows: int,
    dtype: torch.dtype,
) -> Samples:
    """The samples of a block; ``offset`` and ``mask`` are those of the block, ``rows`` is the number of rows in the
    table.

    Coordinates are computed in float32 or wider, whatever the dtype of the offset. NaN and infinity lie in the zeros.
    """
    g, pitch = geometry.offset_groups, geometry.input_size[1] + MARGIN
    b, planes, cells = offset.shape[0], offset.shape[1] // 2, offset.shape[2] * offset.shape[3]
    integer = torch.int32 if rows * g < 2**31 else torch.int64
    top, down = _corner(geometry, block, offset, 0, integer, dtype)
    left, right = _corner(geometry, block, offset, 1, integer, dtype)

    first = top.mul_(pitch).add_(left)
    image = torch.arange(block.images.start, block.images.stop, dtype=integer, device=offset.device)
    first.view(planes, b, cells).add_((image * ((geometry.input_size[0] + MARGIN) * pitch) + _origin(pitch))[:, None])
    if g > 1:
        group = torch.arange(g, dtype=integer, device=offset.device)
        first.mul_(g).view(g, -1).add_(group[:, None])
    index = first.new_empty(planes, 4, b * cells)
    for corner, step in enumerate((0, 1, pitch, pitch + 1)):
        torch.add(first, step * g, out=index[:, corner])

    modulation, upper, lower = None, 1 - down, down
    if mask is not None:
        modulation = down.new_empty(planes, *mask.transpose(0, 1).shape[1:])
        modulation = modulation.copy_(mask.transpose(0, 1)).view(planes, -1)
        upper, lower = upper * modulation, lower * modulation
    rest = 1 - right
    weights = down.new_empty(planes, 4, b * cells)
    for corner, (y, x) in enumerate(((upper, rest), (upper, right), (lower, rest), (lower, right))):
        torch.mul(y, x, out=weights[:, corner])
    return Samples(_cell_major(index), _cell_major(weights), down, right, modulation)


def _cell_major(planes: Tensor) -> Tensor:
    """Permute ``[gk 4 p]`` to ``[p·gk 4]``, the order of the columns."""
    return planes.view(-1, planes.shape[-1]).t().contiguous().view(-1, 4)


def _corner(
    geometry: Geometry, block: Block, offset: Tensor, axis: int, integer: torch.dtype, dtype: torch.dtype
) -> tuple[Int[Tensor, "gk p"], Float[Tensor, "gk p"]]:
    """Floor and fraction of the coordinates of the sampling points along ``axis`` (0: y, 1: x)."""
    b, channels, r, w = offset.shape
    device, kernel = offset.device, geometry.kernel_size
    start, stop = (block.rows.start, block.rows.stop) if axis == 0 else (0, w)
    cell = torch.arange(start, stop, device=device) * geometry.stride[axis] - geometry.padding[axis]
    point = torch.arange(kernel[axis], device=device) * geometry.dilation[axis]
    point = point.repeat_interleave(kernel[1]) if axis == 0 else point.repeat(kernel[0])
    # Integers are added before the offset, in torchvision's order, so that floor() sees the same rounding.
    regular = point.repeat(geometry.offset_groups)[:, None] + cell
    wide = torch.promote_types(offset.dtype, dtype)
    position = torch.empty(channels // 2, b, r, w, dtype=wide, device=device)
    moved = offset.view(b, channels // 2, 2, r, w)[:, :, axis].transpose(0, 1)
    torch.add(moved, regular.to(wide)[:, None, :, None] if axis == 0 else regular.to(wide)[:, None, None], out=position)
    position = position.view(channels // 2, -1)
    position.nan_to_num_(-MARGIN, -MARGIN, -MARGIN).clamp_(-MARGIN, geometry.input_size[axis])
    corner = position.floor()
    return corner.to(integer), position.sub_(corner).to(dtype)

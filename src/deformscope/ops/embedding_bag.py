"""Deformable convolution v1 and v2 on a CPU: one weighted gather and one matrix product (Zhu et al., CVPR 2019, Eq. 1).

The four bilinear corners of a sampling point are four weighted rows of ``F.embedding_bag`` over the channels-last map,
modulation folded into the weights; they give the columns, which one matrix product contracts. Cells are computed a
block at a time, so that columns stay in the cache and are never all in memory: neither is anything kept for the
backward pass but the operator's own arguments. There the input's gradient is a gather too, over the columns' gradient,
with the samples sorted by the row they read.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .autocast import without_autocast
from .contraction import Contraction
from .geometry import Geometry
from .sampling import Block, Samples, blocks, from_table, sample, to_table

BLOCK_BYTES = 8 << 20
"""Size of a block of columns for one or two threads: about a third of a level-3 cache, and small enough for malloc to
reuse its pages (two blocks of 16 MiB take a tenth more time, 2 MiB a fifth)."""


def deform_conv2d(
    input: Float[Tensor, "n c height width"],
    offset: Float[Tensor, "n moves h w"],
    weight: Float[Tensor, "out in_group kh kw"],
    bias: Float[Tensor, " out"] | None,
    mask: Float[Tensor, "n gk h w"] | None,
    geometry: Geometry,
) -> Float[Tensor, "n out h w"]:
    """The output, in the weight's dtype; the map is read in float32 or wider. First derivatives only."""
    return _DeformConv.apply(input, offset, weight, bias, mask, geometry)


class _DeformConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        ctx.save_for_backward(input, offset, weight, mask)
        ctx.geometry = geometry
        with without_autocast(input.device.type):
            return _forward(input, offset, weight, bias, mask, geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(grad.device.type):
            input, offset, weight, mask = ctx.saved_tensors
            return *_backward(input, offset, weight, mask, grad, ctx.needs_input_grad, ctx.geometry), None


def _forward(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: Geometry
) -> Tensor:
    g, table = geometry.offset_groups, to_table(input, geometry, _wide(input))
    finite = _finite(table)
    contraction = Contraction(weight, geometry.groups, g, len(input) * math.prod(geometry.output_size))
    channels_last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    output = torch.empty(
        (len(input), len(weight), *geometry.output_size),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    for block in _blocks(geometry, table, len(input)):
        samples = _sample(geometry, block, offset, mask, table)
        columns = _gather(table.view(-1, table.shape[1] // g), samples, finite)
        part = contraction.forward(_as_columns(columns, geometry).to(weight.dtype))
        if bias is not None:
            part = part + bias[:, None]
        _put(block.of(output), part)
    return output


def _backward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    grad: Tensor,
    needed: tuple[bool, ...],
    geometry: Geometry,
) -> tuple[Tensor | None, ...]:
    needs_input, needs_offset, needs_weight, needs_bias, needs_mask = needed[:5]
    if not (needs_weight or needs_bias or bool(grad.any())):  # an output may not depend on all of a network
        wanted = ((input, needs_input), (offset, needs_offset), (mask, needs_mask))
        zeros = [None if one is None or not need else torch.zeros_like(one) for one, need in wanted]
        return zeros[0], zeros[1], None, None, zeros[2]
    moves = needs_offset or needs_mask
    g, table = geometry.offset_groups, to_table(input, geometry, _wide(input))
    finite, rows = _finite(table), table.view(-1, table.shape[1] // g)
    contraction = Contraction(weight, geometry.groups, g, len(input) * math.prod(geometry.output_size))
    grad_rows = torch.zeros_like(rows) if needs_input else None
    grad_offset = torch.empty_like(offset) if needs_offset else None
    grad_mask = torch.empty_like(mask) if mask is not None and needs_mask else None
    grad_matrix = torch.zeros_like(contraction.matrix, dtype=table.dtype) if needs_weight else None
    leaf = rows.detach().requires_grad_()  # torch 2.4 fails if only the weights need a gradient; this one is not taken
    for block in _blocks(geometry, table, len(input)):
        samples = _sample(geometry, block, offset, mask, table)
        grad_block = block.of(grad).transpose(0, 1).reshape(len(weight), -1)
        columns = None
        if moves:
            weights = samples.weights.requires_grad_()
            with torch.enable_grad():
                gathered = F.embedding_bag(samples.index, leaf, mode="sum", per_sample_weights=weights)
            columns = gathered.detach()
        if grad_matrix is not None:
            if columns is None or not finite:
                columns = _gather(rows, samples, finite)
            grad_matrix += contraction.grad_matrix(grad_block, _as_columns(columns, geometry).to(weight.dtype))
        del columns
        if not (moves or needs_input):
            continue
        grad_columns = contraction.grad_columns(grad_block).to(table.dtype).reshape(-1, rows.shape[1])
        if moves:
            (products,) = torch.autograd.grad(gathered, weights, grad_columns)
            del gathered
            _put_moves(products, samples, block, grad_offset, grad_mask)
        if grad_rows is not None:
            _scatter(grad_rows, samples, grad_columns)
    return (
        None if grad_rows is None else from_table(grad_rows.view_as(table), geometry, input),
        grad_offset,
        None if grad_matrix is None else contraction.as_weight(grad_matrix).to(weight.dtype),
        grad.sum((0, 2, 3)) if needs_bias else None,
        grad_mask,
    )


def _wide(input: Tensor) -> torch.dtype:
    return torch.promote_types(input.dtype, torch.float32)


def _finite(table: Tensor) -> bool:
    """False if the table contains NaN or infinity (or, which does no harm, if its sum overflows)."""
    return bool(table.sum().isfinite())


def _blocks(geometry: Geometry, table: Tensor, n: int) -> list[Block]:
    cell = geometry.points * table.shape[1] * table.element_size()
    return list(blocks(geometry, n, cell, BLOCK_BYTES * max(1, min(8, torch.get_num_threads() // 2))))


def _sample(geometry: Geometry, block: Block, offset: Tensor, mask: Tensor | None, table: Tensor) -> Samples:
    part = None if mask is None else block.of(mask)
    return sample(geometry, block, block.of(offset), part, len(table), table.dtype)


def _gather(rows: Float[Tensor, "rows c"], samples: Samples, finite: bool) -> Float[Tensor, "s c"]:
    """The values of the samples. Where NaN could spread, corners with weight zero read the first row of the table,
    which is zero."""
    weights = samples.weights.detach()
    index = samples.index if finite else samples.index.masked_fill(weights == 0, 0)
    return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)


def _as_columns(samples: Float[Tensor, "s c"], geometry: Geometry) -> Float[Tensor, "p g k c"]:
    return samples.view(-1, geometry.offset_groups, geometry.points, samples.shape[1])


def _put(target: Float[Tensor, "b c r w"], planes: Float[Tensor, "c p"]) -> None:
    b, c, r, w = target.shape
    target.copy_(planes.reshape(c, b, r, w).transpose(0, 1))


def _put_moves(
    products: Float[Tensor, "s 4"], samples: Samples, block: Block, grad_offset: Tensor | None, grad_mask: Tensor | None
) -> None:
    """Write the gradients of offset and modulation, from the product of each corner with the columns' gradient."""
    planes = len(samples.down)
    corner = products.view(-1, planes * 4).t().contiguous().view(planes, 4, -1)
    upper = _blend(corner[:, 0], corner[:, 1], samples.right)
    lower = _blend(corner[:, 2], corner[:, 3], samples.right)
    if grad_mask is not None:
        _put(block.of(grad_mask), _blend(upper, lower, samples.down))
    if grad_offset is not None:
        dy = lower - upper
        dx = _blend(corner[:, 1] - corner[:, 0], corner[:, 3] - corner[:, 2], samples.down)
        if samples.modulation is not None:
            dy, dx = dy * samples.modulation, dx * samples.modulation
        _put(block.of(grad_offset), torch.stack([dy, dx], 1).flatten(0, 1))


def _blend(start: Tensor, end: Tensor, fraction: Tensor) -> Tensor:
    """Linear interpolation in which an end with weight zero does not count, not even if it is NaN."""
    return torch.where(fraction == 0, start, torch.lerp(start, end, fraction))


def _scatter(grad_rows: Float[Tensor, "rows c"], samples: Samples, grad_columns: Float[Tensor, "s c"]) -> None:
    """Add the gradient of every sample to the four rows that it read, as one weighted gather over samples sorted by
    row."""
    row, order = samples.index.view(-1).sort()
    first, last = int(row[0]), int(row[-1])
    starts = torch.searchsorted(row, torch.arange(first, last + 1, dtype=row.dtype, device=row.device))
    weights = samples.weights.detach().view(-1)[order]
    grad_rows[first : last + 1] += F.embedding_bag(
        (order >> 2).to(row.dtype), grad_columns, starts.to(row.dtype), mode="sum", per_sample_weights=weights
    )

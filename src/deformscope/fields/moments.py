"""An encoder's attention as offset fields that every figure of deformable convolutions can show.

A query's points lie on no regular kernel and count by their weights. What the two viewpoints say of them, the weighted
mean displacement (d_f) and the weighted standard deviation around it (the width of d_k), are the first two moments; a
kernel of 2×2 points at d_f ± deviation has the same ones, so that its mean, divergence and radius are those of the
weighted points: radius = sqrt(width · height) with width and height of two standard deviations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError
from .attention import AttentionField
from .field import OffsetField
from .fields import Fields
from .places import CellGrid, Point

ROUNDING = 1e-6
"""Of points, relative to the input's size."""


def moments(field: AttentionField, query_level: int, head: int | None = None) -> OffsetField:
    """The queries of one level of an encoder's ``field`` as kernels of 2×2 points with the moments of their samples.

    All value levels count, and all heads by their weights, or one ``head`` alone. Offsets are in cells of the query
    level, displacements from the reference that the module was given.

    Raises DeformscopeError for object queries, which lie on no grid, and for a level or head that is not there.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> encoder = next(field for field in fields.attention.values() if field.is_dense)
        >>> figure = ds.draw.figure2(moments(encoder.select(0), query_level=1), "photo.jpg", fit="stretch")
        >>> figure.savefig("figure2.png")
    """
    (h, w), queries = field.cells_of(query_level)
    heads = field.points.shape[2]
    if head is not None and not 0 <= head < heads:
        raise DeformscopeError(f"head={head}: expected 0 to {heads - 1} in {field.name!r}")
    chosen = slice(None) if head is None else slice(head, head + 1)
    reduction: Point = (field.input_size[0] / h, field.input_size[1] / w)
    moved = field.displacement()[:, queries, chosen].flatten(2, 3) / field.points.new_tensor(reduction)  # [n q p 2]
    weights = torch.ones_like(moved[..., 0])
    if field.weights is not None:
        weights = field.weights[:, queries, chosen].flatten(2, 3)
    mean, deviation = _moments(moved, weights)
    # What is below float32's grain at the input's size is rounding, and would be drawn enlarged by millions.
    grain = ROUNDING * max(field.input_size) / mean.new_tensor(reduction)
    mean = torch.where(mean.abs() < grain, 0, mean)
    n = moved.shape[0]
    corners = moved.new_tensor([[y, x] for y in (-1, 1) for x in (-1, 1)])
    offset = mean[:, :, None] + corners * deviation[:, :, None]  # [n q 4 2]
    what = f"level {query_level}" if head is None else f"level {query_level}, head {head}"
    return OffsetField(
        offset=offset.view(n, h, w, 1, 4, 2).permute(0, 3, 4, 1, 2, 5).contiguous(),
        kernel_size=(2, 2),
        padding=(0, 0),
        dilation=(0, 0),
        input_size=(h, w),
        cells=CellGrid(reduction, (reduction[0] / 2, reduction[1] / 2)),
        network_size=field.input_size,
        image=field.image,
        placements=field.placements,
        name=f"{field.name}[{what}]",
    )


def encoder_fields(field: AttentionField, head: int | None = None) -> list[OffsetField]:
    """:func:`moments` of all levels of an encoder's attention; none for object queries."""
    return [moments(field, level, head) for level in range(len(field.level_sizes))] if field.is_dense else []


def with_encoders(fields: Fields, patterns: Sequence[str] = (), head: int | None = None) -> Fields:
    """What figures and measures show of a pass: the fields of its convolutions, and after them those of its encoders'
    attention (:func:`encoder_fields`).

    ``patterns`` choose as in :meth:`.fields.Fields.matching`: by the names of the levels (``…self_attn[level 1]``), or
    of the attention for all of its levels.
    """
    of_attention = {name: encoder_fields(one, head) for name, one in fields.attention.items()}
    levels = {field.name: field for several in of_attention.values() for field in several}
    chosen = Fields({**fields, **levels}, fields.attention).matching(patterns)
    whole = {field.name for name in chosen.attention for field in of_attention[name]}
    shown = {name: field for name, field in {**fields, **levels}.items() if name in chosen or name in whole}
    return Fields(shown, chosen.attention)


def _moments(
    points: Float[Tensor, "n q p 2"], weights: Float[Tensor, "n q p"]
) -> tuple[Float[Tensor, "n q 2"], Float[Tensor, "n q 2"]]:
    """The weighted mean and standard deviation of points."""
    shares = (weights / weights.sum(dim=2, keepdim=True).clamp(min=1e-12))[..., None]
    mean = (points * shares).sum(dim=2)
    return mean, ((points - mean[:, :, None]).square() * shares).sum(dim=2).sqrt()

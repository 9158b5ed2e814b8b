"""Where freshly initialised deformable attention looks: whatever the photo, each head along one direction.

All implementations begin as the original code does (Zhu et al., ICLR 2021): ``sampling_offsets`` has weights of zero
and a bias that sends the i-th of a head's n points i cells of its map along the head's direction, or i / n of the way
to the border of the reference box; all attention weights are equal.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from .attention import AttentionField


def directions(heads: int) -> Float[Tensor, "h 2"]:
    """The direction (y, x) of each head's points, of length 1: the first looks to the right, the others follow
    clockwise in equal steps."""
    angle = torch.arange(heads) * (2 * math.pi / heads)
    return torch.stack([angle.sin(), angle.cos()], dim=-1)


def fresh(field: AttentionField) -> AttentionField:
    """The field as freshly initialised attention would have it, from the same references on the same maps.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> start = fresh(fields.attention["model.encoder.layers.0.self_attn"])
        >>> bool((start.weights == 1 / 16).all()), start.split()[0].mean(dim=2).abs().max().item() < 1e-4
        (True, True)
    """
    n, queries, heads, points, _ = field.points.shape
    level = field.level.cpu()
    same = level[:, None] == level
    number = same.tril().sum(dim=1)  # 1 to n among the points of its level
    direction = directions(heads)
    direction = direction / direction.abs().amax(dim=1, keepdim=True)
    if field.has_boxes:
        step = (direction[:, None] * (number / same.sum(dim=1))[:, None] / 2).to(field.points)  # [h p 2]
        moved = step * field.level_reference[:, :, field.level, 2:][:, :, None]
    else:
        cell = torch.tensor(field.input_size) / torch.tensor(field.level_sizes)  # [l 2]
        step = direction[:, None] * number[:, None] * cell[level]
        moved = step.to(field.points).expand(n, queries, heads, points, 2)
    weights = field.points.new_full((n, queries, heads, points), 1 / points)
    return replace(field, points=field.level_reference[:, :, field.level, :2][:, :, None] + moved, weights=weights)

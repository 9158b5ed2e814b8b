"""Whether offsets make sense in another order of their channels: x before y, or all of one component first.

A kernel that moves and stretches has dy_k = μ_y + a · row_k and dx_k = μ_x + b · column_k. That explains about half of
learned offsets' squares in the right order of the channels, and less in any other. So another order than the present
one is suspected where it explains more, and more than all but one of five hundred orders that are drawn at random:
random offsets, too, are best in some order, but hardly ever in one of the three that people use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..fields.field import OffsetField, Pair

ORDERS = {
    "yx": "dy, dx interleaved",
    "xy": "dx, dy interleaved",
    "planar yx": "all dy, then all dx",
    "planar xy": "all dx, then all dy",
}
"""Channels of a kernel, in the order in which they may have come."""
DRAWS, CHANCE = 4999, 2e-3
"""So many random orders are drawn, and at most this share of them may explain as much as the suspected one."""
BETTER = 0.85
"""The suspected order must leave less than this share of what the present one leaves unexplained."""


def suspected_order(fields: Sequence[OffsetField]) -> tuple[str, float, float] | None:
    """The order in which a layer's channels seem to be, and the shares of squares that it and the present one explain.

    None where nothing speaks for another order than the present one, and where the kernel has one row or column.
    """
    kernel = fields[0].kernel_size
    moments = second_moments(fields)
    if min(kernel) < 2 or not bool(torch.isfinite(moments).all()) or moments.trace() <= 0:
        return None
    orders = {name: channels(name, kernel[0] * kernel[1]) for name in ORDERS}
    shares = {name: float(explained(moments, order, kernel)) for name, order in orders.items()}
    best = max((name for name in ORDERS if name != "yx"), key=lambda name: shares[name])
    if 1 - shares[best] > BETTER * (1 - shares["yx"]):
        return None
    anyhow, points = random_orders(kernel[0] * kernel[1])
    draws = [anyhow]
    if best == "xy":
        # Whichever component is y, the kernel's points move together: only how they spread tells x from y.
        draws.append(orders["xy"][points])
    for drawn in draws:
        as_good = int((explained(moments, drawn, kernel) >= shares[best] - 1e-9).sum())
        if (1 + as_good) / (1 + DRAWS) > CHANCE:
            return None
    return best, shares[best], shares["yx"]


def second_moments(fields: Sequence[OffsetField]) -> Float[Tensor, "2k 2k"]:
    """Mean products of the channels as they came (dy, dx interleaved) over images, groups and cells; trace 1."""
    total = torch.zeros(2 * fields[0].offset.shape[2], 2 * fields[0].offset.shape[2], dtype=torch.float64)
    for field in fields:
        values = field.offset.movedim(-1, 3).flatten(2, 3).movedim(2, -1).flatten(0, -2).double().cpu()  # [n·g·h·w 2k]
        products = values.T @ values
        total += products / products.trace().clamp(min=1e-24) / len(fields)
    return total


def explained(
    moments: Float[Tensor, "2k 2k"], order: Int[Tensor, "*orders 2k"], kernel_size: Pair
) -> Float[Tensor, "*orders"]:
    """Share of the offsets' squares that shifts and stretches of the kernel explain.

    ``order`` says which channel is the dy of each kernel point, and then the dx of each.
    """
    directions = _directions(kernel_size)
    placed = directions.new_zeros(*order.shape[:-1], *directions.shape)
    index = order.unsqueeze(-2).expand(placed.shape)
    placed.scatter_(-1, index, directions.expand(placed.shape))
    return ((placed @ moments) * placed).sum(dim=(-1, -2))


def channels(order: str, points: int) -> Int[Tensor, " 2k"]:
    """The channels of all dy, then of all dx, in one of :data:`ORDERS`."""
    planar, xy = order.startswith("planar"), order.endswith("xy")
    every = torch.arange(2 * points)
    halves = (every[:points], every[points:]) if planar else (every[0::2], every[1::2])
    return torch.cat(halves[::-1] if xy else halves)


@lru_cache(8)
def random_orders(points: int) -> tuple[Int[Tensor, "n 2k"], Int[Tensor, "n 2k"]]:
    """Random orders of all channels, and of the kernel points within either component; the same every time."""
    random = torch.Generator().manual_seed(0)
    anyhow = torch.rand(DRAWS, 2 * points, generator=random).argsort(dim=1)
    halves = torch.rand(DRAWS, 2, points, generator=random).argsort(dim=2)
    return anyhow, torch.cat([halves[:, 0], points + halves[:, 1]], dim=1)


@lru_cache(8)
def _directions(kernel_size: Pair) -> Float[Tensor, "4 2k"]:
    """Orthonormal: a shift along y, a stretch along y, a shift along x, a stretch along x; all dy, then all dx."""
    height, width = kernel_size
    flat, none = torch.ones(height * width, dtype=torch.float64), torch.zeros(height * width, dtype=torch.float64)
    rows = torch.arange(height, dtype=torch.float64).repeat_interleave(width)
    columns = torch.arange(width, dtype=torch.float64).repeat(height)
    lines = [torch.cat([one, none]) for one in (flat, rows - rows.mean())]
    lines += [torch.cat([none, one]) for one in (flat, columns - columns.mean())]
    return torch.stack([line / line.norm() for line in lines])

"""Checks of the offsets of one layer; each returns a finding with evidence and advice.

Lengths are in cells of the layer's input map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..fields.field import OffsetField

BROKEN, SUSPECT = "broken", "suspect"

DEAD = 0.01
"""Offsets are dead if 99 % of them are shorter than this, in cells."""
BEYOND, FAR = 0.4, 0.5
"""Offsets explode if this share of the sampling points leaves the map because of them, or if half of the offsets are
longer than this share of the map's shorter side. An offset that is longer than the longer side is suspect."""
PILED, NEAR = 0.1, 1e-3
"""Offsets are clamped if this share of their components lies within ``NEAR`` (relative) of the largest one."""
SATURATED, CLOSE = 0.9, 0.02
"""Modulation is saturated if this share of it is within ``CLOSE`` of 0, or of 1."""
CONSTANT = 1e-3
"""Offsets are constant if their variation over positions is below this share of their length."""
APART = 0.05
"""Cells by which an offset map may be displaced from the cells that it moves."""
BETTER, EXPLAINED = 0.55, 0.5
"""Another channel order is suspected if its unexplained share is below the first of these, relative to the present
order's, and below the second in absolute terms."""


@dataclass(frozen=True)
class Finding:
    """A fault of a layer's offsets."""

    layer: str
    ailment: str
    verdict: str
    """``broken``, or ``suspect``, which may be intended."""
    evidence: str
    advice: str


def findings(layer: str, fields: Sequence[OffsetField]) -> tuple[Finding, ...]:
    """All findings for a layer, from its fields on several images. A fault that hides the others is returned alone."""
    bad = non_finite(layer, fields)
    if bad:
        return (bad,)
    still = dead(layer, fields) or constant(layer, fields)
    moved = () if still else (exploding(layer, fields), clamped(layer, fields), channel_order(layer, fields))
    return tuple(f for f in (still, *moved, saturated(layer, fields), misplaced(layer, fields)) if f)


def non_finite(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """NaN or infinity in offsets or modulation."""
    shares = [field.non_finite for field in fields]
    weights = [0.0 if f.modulation is None else _not_finite(f.modulation) for f in fields]
    if not max(shares) and not max(weights):
        return None
    images = sum(share > 0 or weight > 0 for share, weight in zip(shares, weights, strict=True))
    return Finding(
        layer,
        "non-finite",
        BROKEN,
        f"NaN or infinite in {images} of {len(fields)} images: up to {max(shares):.1%} of the offsets, "
        f"{max(weights):.1%} of the modulation",
        "lower the offset convolution's learning rate, clip gradients, keep the operator out of half precision; "
        "go back to a checkpoint before it happened",
    )


def dead(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """All offsets are near zero: a plain convolution."""
    long = float(torch.quantile(_sampled(_lengths(fields)), 0.99))
    if long >= DEAD:
        return None
    return Finding(
        layer,
        "dead",
        BROKEN,
        f"99 % of the offsets are shorter than {max(long, 0):.2g} cells",
        "as it should be at the start of training; later, see that the offset convolution gets gradients, is in the "
        "optimizer, and is not decayed to zero (no weight decay, a higher learning rate for it)",
    )


def constant(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """The same offsets at every position of every image: the layer is only a dilation."""
    flat = torch.cat([field.offset.flatten(3, 4).movedim(3, 0).flatten(0, 1) for field in fields])  # [n·h·w g k 2]
    if len(flat) < 2:
        return None
    spread = float((flat - flat.mean(dim=0)).square().mean().sqrt())
    length = float(flat.square().mean().sqrt())
    if spread >= CONSTANT * length:
        return None
    return Finding(
        layer,
        "constant",
        BROKEN,
        f"offsets {length:.2g} cells long vary over positions by {spread:.2g} cells",
        "the layer is a plain convolution with a fixed kernel shape: see that the offset convolution's weights, not "
        "only its bias, learn and that its input is not constant",
    )


def exploding(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Offsets that leave the map, where they sample zeros and no gradient brings them back."""
    shares = [beyond(field) for field in fields]
    share = sum(shares) / len(shares)
    lengths = _lengths(fields)
    middle, largest = float(_sampled(lengths).median()), float(lengths.max())
    high, wide = fields[0].input_size
    evidence = (
        f"{share:.0%} of the sampling points lie beyond the map that would not without offsets; these are "
        f"{middle:.3g} cells long (median), at most {largest:.3g}, on a map of {high}×{wide}"
    )
    advice = "lower the offset convolution's learning rate (× 0.1 is usual), warm up, clip gradients; start it at zero"
    if share > BEYOND or middle > FAR * min(high, wide):
        return Finding(layer, "exploding", BROKEN, evidence, advice)
    return Finding(layer, "exploding", SUSPECT, evidence, advice) if largest > max(high, wide) else None


def beyond(field: OffsetField) -> float:
    """Share of the sampling points outside the map whose regular places are inside."""
    size = field.offset.new_tensor(field.input_size)

    def outside(points: Tensor) -> Tensor:
        # Within one cell of the border, bilinear interpolation still reads the map.
        return ((points <= -1) | (points >= size)).any(dim=-1)

    return float((outside(field.sampling_points()) & ~outside(field.regular_points())).float().mean())


def clamped(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Many offsets with the same, largest magnitude."""
    values = torch.cat([field.offset.flatten() for field in fields]).abs()
    limit = float(values.max())
    share = float((values >= limit * (1 - NEAR)).float().mean())
    if share < PILED:
        return None
    return Finding(
        layer,
        "clamped",
        BROKEN,
        f"{share:.0%} of the offsets' components lie at the limit of ±{limit:.3g} cells",
        "widen the clamp or the tanh's range, or find out why the offsets press against it (learning rate, exploding)",
    )


def saturated(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Constant modulation: 0 everywhere, which switches the layer off, or 1 everywhere (DCNv1)."""
    modulations = [field.modulation.flatten() for field in fields if field.modulation is not None]
    if not modulations:
        return None
    values = torch.cat(modulations)
    off, on = float((values < CLOSE).float().mean()), float((values > 1 - CLOSE).float().mean())
    if max(off, on) < SATURATED:
        return None
    which, share = ("0", off) if off > on else ("1", on)
    return Finding(
        layer,
        "saturated",
        BROKEN if off > on else SUSPECT,
        f"{share:.0%} of the modulation is within {CLOSE:g} of {which} (mean {float(values.mean()):.3f})",
        "start the modulation's channels at zero (sigmoid ½) and lower their learning rate; "
        + ("the layer is switched off" if off > on else "as it stands, DCNv1 would do the same for less"),
    )


def misplaced(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """An offset convolution whose geometry places its cells elsewhere than the layer's."""
    made = [field.source for field in fields if field.source is not None and field.source.convolutions]
    worst = max(made, key=lambda source: max(map(abs, source.misalignment)), default=None)
    if worst is None or max(map(abs, worst.misalignment)) <= APART:
        return None
    y, x = worst.misalignment
    return Finding(
        layer,
        "misplaced",
        BROKEN,
        f"the cells of {', '.join(worst.convolutions)} lie up to ({y:+.2f}, {x:+.2f}) cells (y, x) beside those that "
        "they move",
        "give the offset convolution its layer's own stride, padding, dilation and kernel size",
    )


def channel_order(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Offsets that fit another channel order: x before y, or all y before all x.

    A kernel that moves and stretches has dy_k = μ_y + a · row_k and dx_k = μ_x + b · column_k. The orders are compared
    by the share that this leaves unexplained.
    """
    if min(fields[0].kernel_size) < 2:
        return None
    left: dict[str, float] = {}
    for field in fields:
        for order, share in unexplained(field.offset, field.kernel_size).items():
            left[order] = left.get(order, 0.0) + share / len(fields)
    present = left.pop("yx")
    order = min(left, key=lambda name: left[name])
    if left[order] >= min(BETTER * present, EXPLAINED):
        return None
    planar = order.startswith("planar")
    return Finding(
        layer,
        "planar" if planar else "transposed",
        SUSPECT,
        f"read as {ORDERS[order]} the offsets are {1 - left[order]:.0%} a shift and a stretch of the kernel, "
        f"as they stand only {1 - present:.0%}",
        "torchvision wants channel 2k = dy, 2k + 1 = dx, kernel points row-major; reorder the offset convolution's "
        "output channels"
        + (" (they look planar: all of one component first)" if planar else " (x and y look swapped)"),
    )


ORDERS = {
    "yx": "dy, dx interleaved",
    "xy": "dx, dy interleaved",
    "planar yx": "all dy, then all dx",
    "planar xy": "all dx, then all dy",
}


def unexplained(offset: Float[Tensor, "n g k h w 2"], kernel_size: tuple[int, int]) -> dict[str, float]:
    """Share of the offsets' squares that no shift and stretch of the kernel explains, per channel order."""
    points = offset.shape[2]
    channels = offset.movedim(-1, 3).flatten(2, 3)  # as they came: [n g 2·k h w]
    total = float(channels.square().sum())
    rows = torch.arange(points, device=offset.device) // kernel_size[1]
    columns = torch.arange(points, device=offset.device) % kernel_size[1]
    even, odd = channels[:, :, 0::2], channels[:, :, 1::2]
    first, second = channels[:, :, :points], channels[:, :, points:]
    orders = {"yx": (even, odd), "xy": (odd, even), "planar yx": (first, second), "planar xy": (second, first)}
    return {
        name: (_residual(dy, rows) + _residual(dx, columns)) / max(total, 1e-12) for name, (dy, dx) in orders.items()
    }


def _residual(values: Float[Tensor, "n g k h w"], places: Tensor) -> float:
    """Sum of squares left by a straight line over the places of the kernel points, per cell."""
    line = (places - places.float().mean()).to(values.dtype).view(1, 1, -1, 1, 1)
    centred = values - values.mean(dim=2, keepdim=True)
    slope = (centred * line).sum(dim=2, keepdim=True) / line.square().sum()
    return float((centred - slope * line).square().sum())


def _lengths(fields: Sequence[OffsetField]) -> Tensor:
    return torch.cat([field.offset.norm(dim=-1).flatten() for field in fields])


def _sampled(values: Tensor) -> Tensor:
    """At most a million values, evenly spaced, since torch's quantile accepts no more than 16 million."""
    return values[:: max(1, len(values) // 1_000_000)]


def _not_finite(tensor: Tensor) -> float:
    return 1.0 - float(torch.isfinite(tensor).float().mean()) if tensor.numel() else 0.0

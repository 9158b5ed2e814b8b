"""Checks of the offsets of one layer; each returns a finding with evidence and advice.

Lengths are in cells of the layer's input map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..fields.field import OffsetField
from .channel_order import CHANCE, ORDERS, suspected_order

BROKEN, SUSPECT = "broken", "suspect"

DEAD = 0.01
"""Offsets are dead if 99 % of them are shorter than this, in cells."""
BEYOND, FAR = 0.4, 0.5
"""Offsets explode if this share of the sampling points leaves the map because of them, or if half of the offsets are
longer than this share of the map's shorter side. An offset that is longer than the longer side is suspect."""
PILED, STUCK, NEAR, SMALLEST = 0.1, 0.3, 1e-3, 7
"""Offsets are clamped if in an image the first share of all their components, or the second of one channel's, lies
within ``NEAR`` (relative) of the largest one, where two channels or signs meet. On a map with a side below ``SMALLEST``
its first row alone may do that."""
SATURATED, CLOSE = 0.9, 0.02
"""Modulation is saturated if this share of it is within ``CLOSE`` of 0, of 1, or of 2 where it has a range of 0..2."""
WIDER = 1.01
"""A modulation that is larger somewhere is no sigmoid; up to 2, it is taken for 2·sigmoid."""
CONSTANT = 1e-3
"""Offsets are constant if their variation over positions is below this share of their length."""
APART = 0.05
"""Cells by which an offset map may be displaced from the cells that it moves."""


@dataclass(frozen=True)
class Finding:
    """A fault of a layer's offsets.

    Example:
        >>> for finding in ds.diagnose(model, images).findings:
        ...     text = f"{finding.layer}: {finding.ailment} ({finding.evidence}); {finding.advice}"
    """

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
    share = sum(beyond(field) for field in fields) / len(fields)
    # Maps differ in size from photo to photo, and each one's offsets are measured by its own.
    sized = [(field.offset.norm(dim=-1).flatten(), field.input_size) for field in fields]
    middle = float(_sampled(torch.cat([lengths / min(size) for lengths, size in sized])).median())
    largest, size = max(((float(one.max()), size) for one, size in sized), key=lambda pair: pair[0] / max(pair[1]))
    evidence = (
        f"{share:.0%} of the sampling points lie beyond the map that would not without offsets; these are as long as "
        f"{middle:.0%} of the map's shorter side (median), at most {largest:.3g} cells, on a map of "
        f"{'×'.join(map(str, size))}"
    )
    advice = "lower the offset convolution's learning rate (× 0.1 is usual), warm up, clip gradients; start it at zero"
    if share > BEYOND or middle > FAR:
        return Finding(layer, "exploding", BROKEN, evidence, advice)
    return Finding(layer, "exploding", SUSPECT, evidence, advice) if largest > max(size) else None


def beyond(field: OffsetField) -> float:
    """Share of the sampling points outside the map whose regular places are inside."""
    size = field.offset.new_tensor(field.input_size)

    def outside(points: Tensor) -> Tensor:
        # Within one cell of the border, bilinear interpolation still reads the map.
        return ((points <= -1) | (points >= size)).any(dim=-1)

    return float((outside(field.sampling_points()) & ~outside(field.regular_points())).float().mean())


def clamped(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Offsets that are cut off at a limit, judged image by image: the limit may depend on the photo's size."""
    wide = [field for field in fields if min(field.offset.shape[3:5]) >= SMALLEST]
    images = [image for field in wide for image in field.offset.movedim(-1, 3).flatten(1, 3).flatten(2)]
    piles = [pile for pile in map(_pile, images) if pile is not None]
    if not piles:
        return None
    worst = max(piles, key=lambda pile: pile.cells)
    limits = sorted({f"{pile.limit:.3g}" for pile in piles}, key=float)
    return Finding(
        layer,
        "clamped",
        BROKEN if 2 * len(piles) >= len(images) else SUSPECT,
        f"{worst.channels} of {worst.of} channels lie at a limit of ±{limits[0]}"
        f"{f' to ±{limits[-1]}' if len(limits) > 1 else ''} cells, one of them in {worst.channel:.0%} of the cells; "
        f"{worst.cells:.0%} of the cells have a component there (in {len(piles)} of {len(images)} images)",
        "widen the clamp or the tanh's range, or find out why the offsets press against it (learning rate, exploding)",
    )


class _Pile(NamedTuple):
    """What lies at the limit in one image."""

    limit: float
    channels: int
    """Channels that reach it in a noteworthy share of the cells."""
    of: int
    channel: float
    """Share of the cells in which the worst channel reaches it."""
    cells: float
    """Share of the cells in which any channel does."""


def _pile(values: Float[Tensor, "c cells"]) -> _Pile | None:
    """The components at the largest magnitude of an image, if they are too many to be there by themselves."""
    limit = float(values.abs().max())
    at = values.abs() >= limit * (1 - NEAR)
    shares = at.float().mean(dim=1)
    # Where a part of the photo is empty, a channel may well be at its largest value in many cells, but alone.
    reached = int((at & (values > 0)).any(dim=1).sum() + (at & (values < 0)).any(dim=1).sum())
    if limit < DEAD or reached < 2:
        return None
    if float(at.float().mean()) < PILED and float(shares.max()) < STUCK:
        return None
    noteworthy = int((shares >= min(PILED, float(shares.max()))).sum())
    return _Pile(limit, noteworthy, len(values), float(shares.max()), float(at.any(dim=0).float().mean()))


def saturated(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Constant modulation: 0 everywhere, which switches the layer off, 1 everywhere (DCNv1), or 2, of 2·sigmoid."""
    modulations = [field.modulation.flatten() for field in fields if field.modulation is not None]
    if not modulations:
        return None
    values = torch.cat(modulations)
    largest, smallest = float(values.max()), float(values.min())
    doubled = WIDER < largest <= 2 * WIDER and smallest >= 0
    shares = {end: float(((values - end).abs() < CLOSE).float().mean()) for end in ((0, 1, 2) if doubled else (0, 1))}
    end = max(shares, key=lambda one: shares[one])
    if shares[end] < SATURATED:
        return None
    reach = "0..2" if doubled else "0..1" if largest <= WIDER and smallest >= 0 else f"{smallest:.3g}..{largest:.3g}"
    advice = {
        0: "the layer is switched off",
        1: "as it stands (and 2·sigmoid before training), DCNv1 would do the same for less",
        2: "as it stands, DCNv1 with doubled weights would do the same for less",
    }
    return Finding(
        layer,
        "saturated",
        SUSPECT if end else BROKEN,
        f"{shares[end]:.0%} of the modulation is within {CLOSE:g} of {end}, in a range of {reach} "
        f"(mean {float(values.mean()):.3f})",
        "start the modulation's channels at zero (the middle of the sigmoid) and lower their learning rate; "
        + advice[end],
    )


def misplaced(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """An offset convolution whose geometry places its cells elsewhere than the layer's."""
    made = [
        (field.source, field.source.misalignment)
        for field in fields
        if field.source is not None and field.source.convolutions and field.source.misalignment is not None
    ]
    worst, (y, x) = max(made, key=lambda one: max(map(abs, one[1])), default=(None, (0.0, 0.0)))
    if worst is None or max(abs(y), abs(x)) <= APART:
        return None
    return Finding(
        layer,
        "misplaced",
        BROKEN,
        f"the cells of {', '.join(worst.convolutions)} lie up to ({y:+.2f}, {x:+.2f}) cells (y, x) beside those that "
        "they move",
        "give the offset convolution its layer's own stride, padding, dilation and kernel size",
    )


def channel_order(layer: str, fields: Sequence[OffsetField]) -> Finding | None:
    """Offsets that make sense in another order of the channels: x before y, or all y before all x."""
    found = suspected_order(fields)
    if found is None:
        return None
    order, share, present = found
    planar = order.startswith("planar")
    return Finding(
        layer,
        "planar" if planar else "transposed",
        SUSPECT,
        f"read as {ORDERS[order]} the offsets are to {share:.0%} a shift and a stretch of the kernel, as they stand "
        f"only to {present:.0%}; at most one random order in {1 / CHANCE:.0f} explains as much",
        "torchvision wants channel 2k = dy, 2k + 1 = dx, kernel points row-major; reorder the offset convolution's "
        "output channels"
        + (" (they look planar: all of one component first)" if planar else " (x and y look swapped)"),
    )


def _lengths(fields: Sequence[OffsetField]) -> Tensor:
    return torch.cat([field.offset.norm(dim=-1).flatten() for field in fields])


def _sampled(values: Tensor) -> Tensor:
    """At most a million values, evenly spaced, since torch's quantile accepts no more than 16 million."""
    return values[:: max(1, len(values) // 1_000_000)]


def _not_finite(tensor: Tensor) -> float:
    return 1.0 - float(torch.isfinite(tensor).float().mean()) if tensor.numel() else 0.0

"""Checks of one layer of deformable attention; each returns a finding with evidence and advice.

Displacements are counted in what the module counts them in: shares of half the reference box where there are boxes,
cells of the point's own map otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..fields.attention import AttentionField
from ..fields.attention_start import directions
from .checks import BEYOND, BROKEN, CONSTANT, SUSPECT, Finding

ALONG, SHARE = 10.0, 0.95
"""Points keep to their initial direction if this share of them lies within so many degrees of it (by chance, 6 %)."""
EQUAL = 0.02
"""Weights are equal if 99 % of them lie within this share of their mean."""
ONE, MOSTLY = 0.98, 0.9
"""A head is saturated if one of its points has more weight, and a layer if this share of its queries and heads are."""
UNUSED = 0.02
"""A map, or a point of a head, is unused if its weight is below this share of an equal part, in all images."""
HALF = 0.5
BLIND = 0.9
"""A head reads nothing if this share of its weight lies beyond the maps."""


def attention_findings(layer: str, fields: Sequence[AttentionField]) -> tuple[Finding, ...]:
    """All findings for a layer, from its fields on several images. A fault that hides the others is returned alone."""
    bad = non_finite(layer, fields)
    if bad:
        return (bad,)
    checks = constant, initial, equal, saturated, unused, blind, exploding
    found = [finding for check in checks if (finding := check(layer, fields))]
    # Points that are all constant keep to their direction too.
    ailments = {finding.ailment for finding in found}
    return tuple(f for f in found if not (f.ailment == "initial" and "constant" in ailments))


def moved(field: AttentionField) -> Float[Tensor, "n q h p 2"]:
    """How far each point lies from its reference, (y, x), in half boxes or in cells of its map."""
    displacement = field.displacement()
    if field.has_boxes:
        return displacement / (field.level_reference[:, :, field.level, 2:] / 2).clamp(min=1e-6)[:, :, None]
    return displacement / _cell(field)


def in_cells(field: AttentionField) -> Float[Tensor, "n q h p"]:
    """Length of each displacement, in cells of the point's map."""
    return (field.displacement() / _cell(field)).norm(dim=-1)


def beyond(field: AttentionField) -> Float[Tensor, "n q h p"]:
    """1 where a point reads nothing, since it lies beyond its map, although its reference lies on it; else 0."""
    cells, size = _cell(field), field.points.new_tensor(field.input_size)

    def outside(points: Tensor) -> Tensor:
        # Within half a cell of the border, bilinear interpolation still reads the map.
        return ((points <= -cells / 2) | (points >= size + cells / 2)).any(dim=-1)

    reference = field.level_reference[:, :, field.level, :2][:, :, None].expand_as(field.points)
    return (outside(field.points) & ~outside(reference)).to(field.points.dtype)


def non_finite(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """NaN or infinity in points or weights."""
    points = max(1 - float(field.points.isfinite().all(dim=-1).float().mean()) for field in fields)
    weights = max(
        1 - float(field.weights.isfinite().float().mean()) if field.weights is not None else 0 for field in fields
    )
    if not points and not weights:
        return None
    return Finding(
        layer,
        "non-finite",
        BROKEN,
        f"NaN or infinite: up to {points:.1%} of an image's points, {weights:.1%} of its weights",
        "lower the learning rate of sampling_offsets, clip gradients, keep the logits out of half precision; go back "
        "to a checkpoint before it happened",
    )


def constant(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """The same displacements for every query: where the module looks does not depend on what it sees."""
    flat = torch.cat([moved(field).flatten(0, 1) for field in fields])  # [n·q h p 2]
    if len(flat) < 2:
        return None
    spread = float((flat - flat.mean(dim=0)).square().mean().sqrt())
    length = float(flat.square().mean().sqrt())
    if spread >= CONSTANT * length:
        return None
    still = ", and they are those of the initialisation" if _along(fields) >= SHARE else ""
    return Finding(
        layer,
        "constant",
        BROKEN,
        f"displacements {length:.2g} {_unit(fields[0])} long vary over queries and images by {spread:.2g}{still}",
        "as it is before training; later, see that sampling_offsets gets gradients and is in the optimizer (usually "
        "with a tenth of the learning rate)",
    )


def initial(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """Points that never left the direction in which the initialisation sent their head."""
    share = _along(fields)
    if share < SHARE:
        return None
    return Finding(
        layer,
        "initial",
        SUSPECT,
        f"{share:.0%} of the points lie within {ALONG:g}° of their head's initial direction",
        "the layer has learned how far to look, and not where: train longer, or raise the learning rate of "
        "sampling_offsets",
    )


def equal(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """Weights that are all the same: no point counts more than another."""
    parts = [_parts(field) for field in fields]
    if (
        not _weighted(fields)
        or float(torch.cat([(one - 1).abs().flatten() for one in parts]).lt(EQUAL).float().mean()) < 0.99
    ):
        return None
    return Finding(
        layer,
        "equal weights",
        SUSPECT,
        f"99 % of the weights lie within {EQUAL:.0%} of an equal share",
        "as it is before training; later, see that attention_weights gets gradients and is in the optimizer",
    )


def saturated(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """Heads that look at a single point: the others get no gradient."""
    if not _weighted(fields) or fields[0].points.shape[3] < 2:
        return None
    heaviest = torch.cat([field.weights.amax(dim=-1).flatten() for field in fields if field.weights is not None])
    share = float((heaviest > ONE).float().mean())
    if share < MOSTLY:
        return None
    return Finding(
        layer,
        "saturated",
        SUSPECT,
        f"in {share:.0%} of queries and heads one point has more than {ONE:g} of the weight",
        "the other points learn nothing; lower the learning rate of attention_weights, or give heads fewer points",
    )


def unused(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """Maps without weight, or so many points of heads that half would do."""
    if not _weighted(fields):
        return None
    parts = torch.stack([_parts(field).mean(dim=(0, 1)) for field in fields]).amax(dim=0)  # [h p]
    level, sizes = fields[0].level, fields[0].level_sizes
    maps = [
        f"{h}×{w}"
        for number, (h, w) in enumerate(sizes)
        if len(sizes) > 1 and (level == number).any() and float(parts[:, level == number].mean()) < UNUSED
    ]
    idle = float((parts < UNUSED).float().mean())
    if not maps and idle <= HALF:
        return None
    which = [f"the {name} map" for name in maps]
    which += [f"{idle:.0%} of the points of all heads"] if idle > HALF else []
    return Finding(
        layer,
        "unused",
        SUSPECT,
        f"{' and '.join(which)}: less than {UNUSED:.0%} of an equal share of the weight",
        "what is not looked at could be left out: fewer maps or points; or see that their features are trained",
    )


def blind(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """Heads whose weight lies beyond the maps, where zeros are read."""
    lost = torch.stack([(beyond(field) * _weights(field)).sum(dim=3).mean(dim=(0, 1)) for field in fields]).mean(dim=0)
    heads = [number for number, share in enumerate(lost.tolist()) if share > BLIND]
    if not heads or len(heads) == len(lost):  # of all heads, exploding tells
        return None
    which = f"head{'s'[: len(heads) != 1]} {', '.join(map(str, heads))}"
    return Finding(
        layer,
        "blind heads",
        BROKEN,
        f"{which}: more than {BLIND:.0%} of the weight is beyond the maps",
        "these heads read zeros: lower the learning rate of sampling_offsets, clip gradients",
    )


def exploding(layer: str, fields: Sequence[AttentionField]) -> Finding | None:
    """Points that leave the maps."""
    share = sum(float(beyond(field).mean()) for field in fields) / len(fields)
    weight = sum(float((beyond(field) * _weights(field)).sum(dim=3).mean()) for field in fields) / len(fields)
    if share <= BEYOND and weight <= BEYOND:
        return None
    return Finding(
        layer,
        "exploding",
        BROKEN,
        f"{share:.0%} of the points, with {weight:.0%} of the weight, lie beyond the maps, and their references do not",
        "lower the learning rate of sampling_offsets (× 0.1 is usual), warm up, clip gradients",
    )


def _along(fields: Sequence[AttentionField]) -> float:
    """Share of the points within :data:`ALONG` degrees of the direction of their head's initialisation."""
    direction = directions(fields[0].points.shape[2])
    cosines = []
    for field in fields:
        away = moved(field)
        length = away.norm(dim=-1)
        cosine = (away * direction.to(away)[:, None]).sum(dim=-1) / length.clamp(min=1e-9)
        cosines.append(cosine[length > 1e-6])
    flat = torch.cat(cosines)
    return float((flat > math.cos(math.radians(ALONG))).float().mean()) if len(flat) else 0.0


def _cell(field: AttentionField) -> Float[Tensor, "p 2"]:
    """Height and width of a cell of each point's map, px of the network's input."""
    sizes = field.points.new_tensor(field.level_sizes)
    return (field.points.new_tensor(field.input_size) / sizes)[field.level]


def _weights(field: AttentionField) -> Float[Tensor, "n q h p"]:
    """Weights that sum to 1 over a head's points; equal ones, where the module has none."""
    weights = field.points.new_ones(field.points.shape[:4]) if field.weights is None else field.weights
    return weights / weights.sum(dim=3, keepdim=True).clamp(min=1e-12)


def _parts(field: AttentionField) -> Float[Tensor, "n q h p"]:
    """Weights as multiples of an equal share."""
    return _weights(field) * field.points.shape[3]


def _weighted(fields: Sequence[AttentionField]) -> bool:
    return all(field.weights is not None for field in fields)


def _unit(field: AttentionField) -> str:
    return "half boxes" if field.has_boxes else "cells"

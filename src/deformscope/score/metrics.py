"""Metrics for each claim over all photos and over bootstrap samples of them, computed for all samples at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ..metrics import bootstrap
from ..metrics.matching import IOUS, Pooled, average_precision
from .records import PUBLISHED, Column, Table

Drawn = dict[str, Float[Array, " b"]]
"""For each metric, its value on all photos, then on each bootstrap sample."""


@dataclass(frozen=True)
class Metric:
    """A metric: the claim it belongs to, its text and unit, and whether higher is better."""

    name: str
    claim: str
    text: str
    unit: str = "share"
    higher: bool = True
    of: str = "photos"
    """What n counts: ``photos`` or ``objects``."""


CONDENSATION, SEGMENTATION, SIZE = "features condense on objects", "divergence segments", "circles tell size"
METRICS = (
    Metric("pointing", CONDENSATION, "strongest sink lies on an object"),
    Metric("pointing_ring", CONDENSATION, "… less chance at its distance from the photo's centre", "difference"),
    Metric("sink_distance", CONDENSATION, "object's sink to its centre", "√area", False, "objects"),
    Metric("cosine", CONDENSATION, "cosine of d_f with the direction to the centre", "cosine", of="objects"),
    Metric("moved_distance", CONDENSATION, "cells to the centre after moving by d_f", "√area", False, "objects"),
    Metric("iou", SEGMENTATION, "IoU of divergence < 0", "IoU"),
    Metric("iou_best", SEGMENTATION, "IoU at the other half's best threshold", "IoU"),
    Metric("auroc", SEGMENTATION, "AUROC of −divergence", "AUROC"),
    Metric("auroc_ring", SEGMENTATION, "AUROC at equal distance from the photo's centre", "AUROC"),
    Metric("corloc_segment", SEGMENTATION, "CorLoc of the best segment"),
    Metric("mask_ap50", SEGMENTATION, "segments, class-agnostic AP 50", "AP", of="objects"),
    Metric("spearman_centre", SIZE, "Spearman ρ of r with √(wh), the box's centre", "ρ", of="objects"),
    Metric("error_centre", SIZE, "median relative error of a·r, the box's centre", "share", False, "objects"),
    Metric("spearman_largest", SIZE, "Spearman ρ of r with √(wh), the largest circle", "ρ", of="objects"),
)
REGION = {f.name for f in METRICS if f.claim == SEGMENTATION} | {"pointing", "pointing_ring"}
"""Metrics that use masks; if any photo has masks, only photos with masks of all objects count."""
PER_THING = ("sink_distance", "cosine", "moved_distance")
AP_DRAWS = 200
"""Bootstrap draws of the AP of segments, which takes longest."""


def photo_metrics(table: Table, column: Column, weights: Float[Array, "b n"], half: Bool[Array, " n"]) -> Drawn:
    """The metrics of photos for the samples in ``weights``. What is fitted on one ``half`` is measured on the other."""
    region = _region(table, weights)
    found: Drawn = {
        name: bootstrap.mean(values, region if name in REGION else weights) for name, values in column.image.items()
    }
    return found | {
        "iou": bootstrap.mean(column.iou[:, PUBLISHED], region),
        "iou_best": best_level(column.iou, half, region),
    }


@dataclass(frozen=True)
class Objects:
    """The objects of a table in b samples, with what is shared by all sources."""

    weights: Float[Array, "b o"]
    """How often each object counts: as often as its photo."""
    half: Bool[Array, " o"]
    size: Float[Array, " o"]
    """sqrt(width · height), px."""
    ranks: Float[Array, "b o"]
    """Of :attr:`size`."""

    @classmethod
    def of(cls, table: Table, weights: Float[Array, "b n"], half: Bool[Array, " n"]) -> Objects:
        """The objects of a table, for the ``weights`` of its photos."""
        counts, size = weights[:, table.owner], np.sqrt(table.size.prod(axis=1))
        return cls(counts, half[table.owner], size, ranks(size, counts))

    def spearman(self, radius: Float[Array, " o"]) -> Float[Array, " b"]:
        """Spearman's ρ with the sizes of the objects, without those whose radius is NaN."""
        seen = np.isfinite(radius)
        if seen.all():
            return correlation(ranks(radius, self.weights), self.ranks, self.weights)
        counts = self.weights[:, seen]
        return correlation(ranks(radius[seen], counts), ranks(self.size[seen], counts), counts)


def object_metrics(column: Column, objects: Objects) -> Drawn:
    """The metrics of objects."""
    found: Drawn = {name: bootstrap.mean(column.things[name], objects.weights) for name in PER_THING}
    for place in ("centre", "largest"):
        found[f"spearman_{place}"] = objects.spearman(column.things[f"r_{place}"])
    radius = column.things["r_centre"]
    seen = np.isfinite(radius)
    counts = objects.weights if seen.all() else objects.weights[:, seen]
    return found | {"error_centre": crossed(radius[seen], objects.size[seen], objects.half[seen], counts)}


def _region(table: Table, weights: Float[Array, "b n"]) -> Float[Array, "b n"]:
    return weights * table.masked if table.masked.any() else weights


def best_level(
    levels: Float[Array, "n t"], half: Bool[Array, " n"], weights: Float[Array, "b n"]
) -> Float[Array, " b"]:
    """Mean over photos, each at the threshold that is best on the other half of the photos."""
    there = np.isfinite(levels[:, 0])
    total, count = np.zeros(len(weights)), weights[:, there].sum(axis=1)
    for side in (half, ~half):
        chosen = weights[:, there & ~side] @ levels[there & ~side]
        sums = weights[:, there & side] @ levels[there & side]
        total += np.take_along_axis(sums, chosen.argmax(axis=1)[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def segment_metrics(table: Table, column: Column, weights: Float[Array, "b n"]) -> Drawn:
    """Class-agnostic AP50 of a column's segments; NaN for the draws beyond :data:`AP_DRAWS`."""
    weights = _region(table, weights)
    ap = np.full(len(weights), np.nan)
    ap[: AP_DRAWS + 1] = average_precision(Pooled.of(column.matches), weights[: AP_DRAWS + 1])[:, IOUS.index(0.5)]
    return {"mask_ap50": ap}


def counted(table: Table, metric: Metric, weights: Float[Array, " n"]) -> int:
    """Number of photos or objects of a metric."""
    there = (weights > 0) & (table.masked if metric.name in REGION and table.masked.any() else True)
    return int(there[table.owner].sum() if metric.of == "objects" else there.sum())


def only(table: Table, things: Bool[Array, " o"]) -> Table:
    """The table with some of its objects and all of its photos, so that samples stay paired."""
    kept = np.flatnonzero(things)
    return replace(
        table,
        owner=table.owner[kept],
        category=tuple(table.category[i] for i in kept),
        area_class=tuple(table.area_class[i] for i in kept),
        size=table.size[kept],
        columns={
            layer: {
                source: replace(column, things={name: values[kept] for name, values in column.things.items()})
                for source, column in sources.items()
            }
            for layer, sources in table.columns.items()
        },
    )


def largest(table: Table) -> Int[Array, " n"]:
    """Index of the largest object of each photo; −1 if it has none."""
    best = np.full(len(table.names), -1)
    area = table.size.prod(axis=1)
    for thing, owner in enumerate(table.owner):
        if best[owner] < 0 or area[thing] > area[best[owner]]:
            best[owner] = thing
    return best


def ranks(values: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, "b o"]:
    """Ranks of values that occur ``weights`` times each; equal values share their mean rank."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    count = np.add.reduceat(weights[:, order], start, axis=1) if len(order) else weights
    mean = np.cumsum(count, axis=1) - (count - 1) / 2
    result = np.empty(weights.shape)
    result[:, order] = np.repeat(mean, np.diff(np.append(start, len(order))), axis=1)
    return result


def correlation(a: Float[Array, "#b o"], b: Float[Array, "#b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """Pearson's correlation for each row of weights (of :func:`ranks`, Spearman's); NaN if a or b is constant."""
    total = np.maximum(weights.sum(axis=1), 1e-12)
    a, b = (values - (np.einsum("bo,bo->b", weights, values) / total)[:, None] for values in (a, b))
    weighted = weights * a
    spread = np.sqrt(np.einsum("bo,bo->b", weighted, a) * np.einsum("bo,bo,bo->b", weights, b, b))
    # Less is rounding, not variation.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, np.einsum("bo,bo->b", weighted, b) / spread, np.nan)


def median(values: Float[Array, "b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The weighted median of each row (of an even count the mean of the middle two); NaN without any weight."""
    # Taking from the flat array is several times as quick as np.take_along_axis.
    order = np.argsort(values, axis=1) + np.arange(len(values))[:, None] * values.shape[1]
    return _middle(values.take(order), weights.take(order))


def fit(radius: Float[Array, " o"], size: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The one parameter a of size ≈ a · r: the median of size / r over the objects with r > 0."""
    seen = np.flatnonzero(radius > 0)
    ratio = size[seen] / radius[seen]
    order = np.argsort(ratio)
    return _middle(ratio[order][None], weights[:, seen[order]])


def _middle(ordered: Float[Array, "#b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The weighted median of ascending values."""
    if not ordered.shape[1]:
        return np.full(len(weights), np.nan)
    below = np.cumsum(weights, axis=1)
    half, last = below[:, -1:] / 2, ordered.shape[1] - 1
    middle = [np.minimum((below < half + shift).sum(axis=1), last) for shift in (-1e-9, 1e-9)]
    rows = np.arange(len(weights)) if len(ordered) > 1 else np.zeros(len(weights), dtype=int)
    low, high = (ordered[rows, place] for place in middle)
    return np.where(below[:, -1] > 0, (low + high) / 2, np.nan)


def crossed(
    radius: Float[Array, " o"], size: Float[Array, " o"], half: Bool[Array, " o"], weights: Float[Array, "b o"]
) -> Float[Array, " b"]:
    """Median relative error |a·r − size| / size; a is fitted on the other ``half`` of the photos than the one an object
    belongs to, both ways."""
    factor = [fit(radius[side], size[side], weights[:, side]) for side in (~half, half)]
    error = np.abs(np.where(half, factor[0][:, None], factor[1][:, None]) * radius - size) / size
    known = np.isfinite(error)
    return median(np.where(known, error, np.inf), np.where(known, weights, 0))

"""Metrics for each claim over all photos and over bootstrap samples of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ...metrics import bootstrap
from ...metrics.matching import IOUS, Pooled, average_precision
from ..measures.segmentation import PUBLISHED
from . import size
from .columns import Column, Table

Array = np.ndarray
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
    Metric("pointing_box", CONDENSATION, "strongest sink lies in an object's box"),
    Metric("sink_distance", CONDENSATION, "object's sink to its centre", "√area", False, "objects"),
    Metric("towards", CONDENSATION, "cells whose d_f points towards the centre", of="objects"),
    Metric("cosine", CONDENSATION, "cosine of d_f with the direction to the centre", "cosine", of="objects"),
    Metric("moved_distance", CONDENSATION, "cells to the centre after moving by d_f", "√area", False, "objects"),
    Metric("ends_inside", CONDENSATION, "cells that end on their object, following d_f", of="objects"),
    Metric("end_distance", CONDENSATION, "cells' ends to the centre, following d_f", "√area", False, "objects"),
    Metric("iou", SEGMENTATION, "IoU of divergence < 0", "IoU"),
    Metric("f1", SEGMENTATION, "F1 of divergence < 0", "F1"),
    Metric("iou_best", SEGMENTATION, "IoU at the other half's best threshold", "IoU"),
    Metric("f1_best", SEGMENTATION, "F1 at the other half's best threshold", "F1"),
    Metric("auroc", SEGMENTATION, "AUROC of −divergence", "AUROC"),
    Metric("auroc_ring", SEGMENTATION, "AUROC at equal distance from the photo's centre", "AUROC"),
    Metric("auroc_box", SEGMENTATION, "AUROC of −divergence against boxes", "AUROC"),
    Metric("ap", SEGMENTATION, "average precision of −divergence", "AP"),
    Metric("energy", SEGMENTATION, "energy-based pointing game"),
    Metric("energy_ratio", SEGMENTATION, "… over chance", "ratio"),
    Metric("corloc", SEGMENTATION, "CorLoc of the largest region of divergence < 0"),
    Metric("corloc_segment", SEGMENTATION, "CorLoc of the best segment"),
    Metric("mask_ap", SEGMENTATION, "segments, class-agnostic AP 50-95", "AP", of="objects"),
    Metric("mask_ap50", SEGMENTATION, "segments, class-agnostic AP 50", "AP", of="objects"),
    Metric("ar100", SEGMENTATION, "segments, class-agnostic AR@100", "AR", of="objects"),
    *(
        metric
        for place, words in (("centre", "the box's centre"), ("sink", "the sink"), ("largest", "the largest circle"))
        for metric in (
            Metric(f"spearman_{place}", SIZE, f"Spearman ρ of r with √(wh), {words}", "ρ", of="objects"),
            Metric(f"r2_{place}", SIZE, f"R² of log r to log √(wh), {words}", "R²", of="objects"),
            Metric(f"error_{place}", SIZE, f"median relative error of a·r, {words}", "share", False, "objects"),
            Metric(f"sml_{place}", SIZE, f"S/M/L right by a·r, {words}", of="objects"),
        )
    ),
    Metric("spearman_width", SIZE, "Spearman ρ of the kernel's width with the box's", "ρ", of="objects"),
    Metric("spearman_height", SIZE, "Spearman ρ of the kernel's height with the box's", "ρ", of="objects"),
)
REGION = {f.name for f in METRICS if f.claim == SEGMENTATION and f.name != "auroc_box"} | {"pointing", "pointing_ring"}
"""Metrics that use masks; if any photo has masks, only photos with masks of all objects count."""
PER_THING = ("sink_distance", "towards", "cosine", "moved_distance", "ends_inside", "end_distance")
AP_DRAWS = 200
"""Bootstrap draws of the AP of segments, which takes longest."""


def photo_metrics(table: Table, column: Column, weights: Float[Array, "b n"], half: Bool[Array, " n"]) -> Drawn:
    """The metrics of photos for the samples in ``weights``. What is fitted on one ``half`` is measured on the other."""
    region = _region(table, weights)
    found: Drawn = {
        name: bootstrap.mean(values, region if name in REGION else weights) for name, values in column.image.items()
    }
    for name, levels in (("iou", column.iou), ("f1", 2 * column.iou / (1 + column.iou))):
        found[name] = bootstrap.mean(levels[:, PUBLISHED], region)
        found[f"{name}_best"] = best_level(levels, half, region)
    return found


@dataclass(frozen=True)
class Objects:
    """The objects of a table in b samples, with what is shared by all sources."""

    weights: Float[Array, "b o"]
    """How often each object counts: as often as its photo."""
    half: Bool[Array, " o"]
    size: Float[Array, " o"]
    """sqrt(width · height), px."""
    sides: dict[str, Float[Array, " o"]]
    """Height and width, px."""
    ranks: dict[str, Float[Array, "b o"]]
    """Ranks of ``size``, ``height`` and ``width``."""

    @classmethod
    def of(cls, table: Table, weights: Float[Array, "b n"], half: Bool[Array, " n"]) -> Objects:
        """The objects of a table, for the ``weights`` of its photos."""
        counts = weights[:, table.owner]
        measured = np.sqrt(table.size.prod(axis=1))
        sides = {"height": table.size[:, 0], "width": table.size[:, 1]}
        ranks = {name: size.ranks(values, counts) for name, values in (sides | {"size": measured}).items()}
        return cls(counts, half[table.owner], measured, sides, ranks)

    def spearman(self, values: Float[Array, " o"], of: str) -> Float[Array, " b"]:
        """Spearman's ρ with the ``size``, ``height`` or ``width`` of the objects, without those whose value is NaN."""
        seen = np.isfinite(values)
        if seen.all():
            return size.correlation(size.ranks(values, self.weights), self.ranks[of], self.weights)
        true, counts = (self.sides | {"size": self.size})[of][seen], self.weights[:, seen]
        return size.correlation(size.ranks(values[seen], counts), size.ranks(true, counts), counts)


def object_metrics(column: Column, objects: Objects) -> Drawn:
    """The metrics of objects."""
    found: Drawn = {name: bootstrap.mean(column.things[name], objects.weights) for name in PER_THING}
    for place in ("centre", "sink", "largest"):
        r = column.things[f"r_{place}"]
        seen = np.isfinite(r)
        radius, true, half = r[seen], objects.size[seen], objects.half[seen]
        counts = objects.weights if seen.all() else objects.weights[:, seen]
        found[f"spearman_{place}"] = objects.spearman(r, "size")
        found[f"r2_{place}"] = size.r_squared(radius, true, counts)
        found[f"error_{place}"], found[f"sml_{place}"] = size.crossed(radius, true, half, counts)
    for name in objects.sides:
        found[f"spearman_{name}"] = objects.spearman(column.things[name], name)
    return found


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
    """Class-agnostic AP and AR of a column's segments; NaN for the draws beyond :data:`AP_DRAWS`."""
    weights = _region(table, weights)
    pooled = Pooled.of(column.matches)
    found = np.array([m.hit.sum(axis=1).mean() if m.hit.size else 0.0 for m in column.matches])
    ap = np.full((len(weights), len(IOUS)), np.nan)
    ap[: AP_DRAWS + 1] = average_precision(pooled, weights[: AP_DRAWS + 1])
    totals = weights @ pooled.objects
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(totals > 0, (weights @ found) / totals, np.nan)
    return {"mask_ap": ap.mean(axis=1), "mask_ap50": ap[:, 0], "ar100": recall}


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


def largest(table: Table) -> Any:
    """Index of the largest object of each photo; −1 if it has none."""
    best = np.full(len(table.names), -1)
    area = table.size.prod(axis=1)
    for thing, owner in enumerate(table.owner):
        if best[owner] < 0 or area[thing] > area[best[owner]]:
            best[owner] = thing
    return best

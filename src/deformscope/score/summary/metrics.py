"""Every claim as figures over a table of photos, each drawn by bootstrap, and set against its nulls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ...metrics import bootstrap
from ...metrics.matching import IOUS, ap_of, pooled
from ..measures.segmentation import PUBLISHED
from . import size
from .columns import Column, Table

Array = np.ndarray
Drawn = dict[str, Float[Array, " b"]]
"""Each figure, the plain one first and then its bootstrap draws."""


@dataclass(frozen=True)
class Figure:
    """What a figure is: its claim, words, unit, and which way is better."""

    name: str
    claim: str
    text: str
    unit: str = "share"
    higher: bool = True
    of: str = "photos"
    """What n counts."""


CONDENSATION, SEGMENTATION, SIZE = "features condense on objects", "divergence segments", "circles tell size"
FIGURES = (
    Figure("pointing", CONDENSATION, "strongest sink lies on an object"),
    Figure("pointing_ring", CONDENSATION, "… less chance at its distance from the photo's centre", "difference"),
    Figure("pointing_box", CONDENSATION, "strongest sink lies in an object's box"),
    Figure("sink_distance", CONDENSATION, "object's sink to its centre", "√area", False, "objects"),
    Figure("towards", CONDENSATION, "cells whose d_f points towards the centre", of="objects"),
    Figure("cosine", CONDENSATION, "cosine of d_f with the way to the centre", "cosine", of="objects"),
    Figure("moved_distance", CONDENSATION, "cells to the centre after moving by d_f", "√area", False, "objects"),
    Figure("ends_inside", CONDENSATION, "cells that end on their object, following d_f", of="objects"),
    Figure("end_distance", CONDENSATION, "cells' ends to the centre, following d_f", "√area", False, "objects"),
    Figure("iou", SEGMENTATION, "IoU of divergence < 0", "IoU"),
    Figure("f1", SEGMENTATION, "F1 of divergence < 0", "F1"),
    Figure("iou_best", SEGMENTATION, "IoU at the other half's best threshold", "IoU"),
    Figure("f1_best", SEGMENTATION, "F1 at the other half's best threshold", "F1"),
    Figure("auroc", SEGMENTATION, "AUROC of −divergence", "AUROC"),
    Figure("auroc_ring", SEGMENTATION, "AUROC at equal distance from the photo's centre", "AUROC"),
    Figure("auroc_box", SEGMENTATION, "AUROC of −divergence against boxes", "AUROC"),
    Figure("ap", SEGMENTATION, "average precision of −divergence", "AP"),
    Figure("energy", SEGMENTATION, "energy-based pointing game"),
    Figure("energy_ratio", SEGMENTATION, "… over chance", "ratio"),
    Figure("corloc", SEGMENTATION, "CorLoc of the largest region of divergence < 0"),
    Figure("corloc_segment", SEGMENTATION, "CorLoc of the best segment"),
    Figure("mask_ap", SEGMENTATION, "segments, class-agnostic AP 50-95", "AP", of="objects"),
    Figure("mask_ap50", SEGMENTATION, "segments, class-agnostic AP 50", "AP", of="objects"),
    Figure("ar100", SEGMENTATION, "segments, class-agnostic AR@100", "AR", of="objects"),
    *(
        figure
        for place, words in (("centre", "the box's centre"), ("sink", "the sink"), ("largest", "the largest circle"))
        for figure in (
            Figure(f"spearman_{place}", SIZE, f"Spearman ρ of r with √(wh), {words}", "ρ", of="objects"),
            Figure(f"r2_{place}", SIZE, f"R² of log r to log √(wh), {words}", "R²", of="objects"),
            Figure(f"error_{place}", SIZE, f"median relative error of a·r, {words}", "share", False, "objects"),
            Figure(f"sml_{place}", SIZE, f"S/M/L right by a·r, {words}", of="objects"),
        )
    ),
    Figure("spearman_width", SIZE, "Spearman ρ of the kernel's width with the box's", "ρ", of="objects"),
    Figure("spearman_height", SIZE, "Spearman ρ of the kernel's height with the box's", "ρ", of="objects"),
)
REGION = {f.name for f in FIGURES if f.claim == SEGMENTATION and f.name != "auroc_box"} | {"pointing", "pointing_ring"}
"""Figures that need masks: where any photo has them, only photos that have all of theirs count."""
PER_THING = ("sink_distance", "towards", "cosine", "moved_distance", "ends_inside", "end_distance")
AP_DRAWS = 200
"""Bootstrap draws of the segments' AP, the one figure that needs a pass over all segments for each."""


def photo_figures(table: Table, column: Column, weights: Float[Array, "b n"], half: Bool[Array, " n"]) -> Drawn:
    """The figures of photos, by the draws in ``weights``; ``half`` parts what is fitted from what is measured."""
    region = _region(table, weights)
    figures: Drawn = {
        name: bootstrap.mean(values, region if name in REGION else weights) for name, values in column.image.items()
    }
    for name, levels in (("iou", column.iou), ("f1", 2 * column.iou / (1 + column.iou))):
        figures[name] = bootstrap.mean(levels[:, PUBLISHED], region)
        figures[f"{name}_best"] = best_level(levels, half, region)
    return figures


def object_figures(table: Table, column: Column, weights: Float[Array, "b n"], half: Bool[Array, " n"]) -> Drawn:
    """The figures of objects, each counted as often as its photo."""
    objects = weights[:, table.owner]
    figures: Drawn = {name: bootstrap.mean(column.things[name], objects) for name in PER_THING}
    measured = np.sqrt(table.size.prod(axis=1))
    for place in ("centre", "sink", "largest"):
        r = column.things[f"r_{place}"]
        seen = np.isfinite(r)
        radius, true, counts = r[seen], measured[seen], objects[:, seen]
        figures[f"spearman_{place}"] = size.spearman(radius, true, counts)
        figures[f"r2_{place}"] = size.r_squared(radius, true, counts)
        error, right = size.crossed(radius, true, half[table.owner][seen], counts)
        figures[f"error_{place}"], figures[f"sml_{place}"] = error, right
    for axis, name in enumerate(("height", "width")):
        extent = column.things[name]
        seen = np.isfinite(extent)
        figures[f"spearman_{name}"] = size.spearman(extent[seen], table.size[seen, axis], objects[:, seen])
    return figures


def _region(table: Table, weights: Float[Array, "b n"]) -> Float[Array, "b n"]:
    return weights * table.masked if table.masked.any() else weights


def best_level(
    levels: Float[Array, "n t"], half: Bool[Array, " n"], weights: Float[Array, "b n"]
) -> Float[Array, " b"]:
    """Mean over the photos at the threshold that is best on the half that a photo does not belong to."""
    there = np.isfinite(levels[:, 0])
    total, count = np.zeros(len(weights)), weights[:, there].sum(axis=1)
    for side in (half, ~half):
        chosen = weights[:, there & ~side] @ levels[there & ~side]
        sums = weights[:, there & side] @ levels[there & side]
        total += np.take_along_axis(sums, chosen.argmax(axis=1)[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)


def segment_figures(table: Table, column: Column, weights: Float[Array, "b n"]) -> Drawn:
    """Class-agnostic AP and AR of a column's segments; NaN for the draws beyond :data:`AP_DRAWS`."""
    weights = _region(table, weights)
    objects = np.array([m.objects for m in column.matches], dtype=float)
    found = np.array([m.hit.sum(axis=1).mean() if m.hit.size else 0.0 for m in column.matches])
    _, hit, skipped, image = pooled(column.matches)
    ap = np.full((len(weights), len(IOUS)), np.nan)
    totals = weights @ objects
    for row in range(min(len(weights), AP_DRAWS + 1)):
        if totals[row]:
            ap[row] = ap_of(hit, skipped, weights[row][image], totals[row])
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = np.where(totals > 0, (weights @ found) / totals, np.nan)
    return {"mask_ap": ap.mean(axis=1), "mask_ap50": ap[:, 0], "ar100": recall}


def counted(table: Table, figure: Figure, weights: Float[Array, " n"]) -> int:
    """How many photos or objects a figure is of."""
    there = (weights > 0) & (table.masked if figure.name in REGION and table.masked.any() else True)
    return int(there[table.owner].sum() if figure.of == "objects" else there.sum())


def only(table: Table, things: Bool[Array, " o"]) -> Table:
    """The table with only some of its objects; its photos stay, so that draws stay paired."""
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
    """The index of each photo's largest object, −1 where it has none."""
    best = np.full(len(table.names), -1)
    area = table.size.prod(axis=1)
    for thing, owner in enumerate(table.owner):
        if best[owner] < 0 or area[thing] > area[best[owner]]:
            best[owner] = thing
    return best

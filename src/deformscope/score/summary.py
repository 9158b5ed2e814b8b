"""Metrics of all photos of a run with intervals, for the offsets and all nulls, by view, size and class.

Each is computed for all bootstrap samples at once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ..metrics import bootstrap
from ..metrics.matching import IOUS, Pooled, average_precision
from .records import NULLS, PUBLISHED, Column, Record, Table, table
from .scores import METRICS, SEGMENTATION, VIEWS, Metric, Part, Row, Scores

Drawn = dict[str, Float[Array, " b"]]
"""For each metric, its value on all photos, then on each bootstrap sample."""
REGION = {f.name for f in METRICS if f.claim == SEGMENTATION} | {"pointing", "pointing_ring"}
"""Metrics that use masks; if any photo has masks, only photos with masks of all objects count."""
PER_THING = ("sink_distance", "cosine", "moved_distance")
AP_DRAWS = 200
"""Bootstrap draws of the AP of segments, which takes longest."""
LEAST = 10
"""Smallest number of photos or objects of a part with metrics of its own."""
BLOCK = 4_000_000
"""Number of weights processed at once."""


def summarise(records: Callable[[], Iterable[Record]], run: dict[str, Any], count: int | None = None) -> Scores:
    """Metrics of a run's records, which are read once for each view.

    ``count`` bootstrap draws; by default 200-1000, fewer where there are many objects.
    """
    parts: list[Part] = []
    views = {view: table(records(), view) for view in VIEWS}
    for view, one in views.items():
        photos, objects = len(one.names), len(one.owner)
        if not photos:
            continue
        draws = bootstrap.draws(photos, count or int(np.clip(2_000_000 // max(objects, 1), 200, 1000)))
        parts.append(Part(view, photos, objects, _rows(one, draws, one.half), _best(one, draws)))
        if view == "whole":
            parts += _parts(one, draws[:201])
    problems: dict[str, list[str]] = {}
    total = 0
    for record in records():
        total += 1
        if record.status != "scored":
            problems.setdefault(record.status, []).append(f"{record.file}: {record.note}")
        elif record.broken:
            problems.setdefault("offsets not finite", []).append(f"{record.file}: {', '.join(record.broken)}")
    return Scores(run | {"records": total}, tuple(parts), problems, views)


def _parts(one: Table, draws: Float[Array, "b n"]) -> list[Part]:
    parts = []
    several = np.bincount(one.owner, minlength=len(one.names)) > 1
    chosen: list[tuple[str, Bool[Array, " o"]]] = [("several objects", several[one.owner])]
    chosen += [(f"size {name}", np.array([c == name for c in one.area_class], dtype=bool)) for name in "SML"]
    for name, total in Counter(one.category).most_common():
        if total >= LEAST:
            chosen.append((f"class {name}", np.array([c == name for c in one.category], dtype=bool)))
    biggest = largest(one)
    for name, things in chosen:
        # For metrics of photos, a photo belongs to the size and class of its largest object.
        photos = several if name == "several objects" else (biggest >= 0) & things[np.maximum(biggest, 0)]
        if things.sum() < LEAST:
            continue
        rows = _rows(only(one, things), draws, one.half, photos=photos, segments=name == "several objects")
        parts.append(Part(name, int(photos.sum()), int(things.sum()), rows))
    return parts


def _rows(
    one: Table,
    draws: Float[Array, "b n"],
    half: Bool[Array, " n"],
    *,
    photos: Bool[Array, " n"] | None = None,
    segments: bool = True,
    layers: Sequence[str] | None = None,
) -> tuple[Row, ...]:
    shown = METRICS if segments else [m for m in METRICS if m.name != "mask_ap50"]
    chosen = one.layers if layers is None else layers
    # Nulls that do not depend on a layer are computed once, and compared with every layer.
    columns: dict[tuple[str, str], Column] = {}
    beside: dict[str, dict[str, tuple[str, str]]] = {layer: {} for layer in chosen}
    for layer in chosen:
        for source in ("field", *NULLS):
            column = one.column(layer, source)
            if column is not None:
                key = (layer if source in one.columns[layer] else "*", source)
                columns[key], beside[layer][source] = column, key
    drawn = _drawn(one, columns, draws, half, photos, segments)
    rows = []
    for layer, keys in beside.items():
        for metric in shown:
            of_photos = metric.of == "photos" and photos is not None
            n = counted(one, metric, draws[0] * photos if of_photos and photos is not None else draws[0])
            rows.append(_compare(metric, layer, n, {source: drawn[key][metric.name] for source, key in keys.items()}))
    return tuple(rows)


def _drawn(
    one: Table,
    columns: Mapping[tuple[str, str], Column],
    draws: Float[Array, "b n"],
    half: Bool[Array, " n"],
    photos: Bool[Array, " n"] | None,
    segments: bool,
) -> dict[tuple[str, str], Drawn]:
    """All metrics of each column. Those of objects are computed in blocks of samples, to bound the memory.

    ``photos`` restricts only metrics of photos.
    """
    step = max(1, BLOCK // max(len(one.owner), 1))
    blocks: dict[tuple[str, str], list[Drawn]] = {key: [] for key in columns}
    for start in range(0, len(draws), step):
        objects = Objects.of(one, draws[start : start + step], half)
        for key, column in columns.items():
            blocks[key].append(object_metrics(column, objects))
    weights = draws if photos is None else draws * photos
    found = {}
    for key, column in columns.items():
        first, *others = blocks[key]
        found[key] = {name: np.concatenate([first[name], *(block[name] for block in others)]) for name in first}
        found[key] |= photo_metrics(one, column, weights, half)
        if segments:
            found[key] |= segment_metrics(one, column, weights)
    return found


def _best(one: Table, draws: Float[Array, "b n"]) -> tuple[Row, ...]:
    """For each metric the layer that is best on one half of the photos, measured on the other half."""
    if min(one.half.sum(), (~one.half).sum()) < LEAST:
        return ()
    plain: dict[str, dict[str, float]] = {}
    for row in _rows(one, draws[:1] * ~one.half, one.quarter):
        plain.setdefault(row.metric.name, {})[row.layer] = row.sources["field"].value * (1 if row.metric.higher else -1)
    chosen = {
        name: max(values, key=lambda layer: values[layer] if math.isfinite(values[layer]) else -math.inf)
        for name, values in plain.items()
    }
    measured = _rows(one, draws * one.half, one.quarter, layers=sorted(set(chosen.values())))
    return tuple(row for row in measured if chosen[row.metric.name] == row.layer)


def _compare(metric: Metric, layer: str, n: int, values: dict[str, Float[Array, " b"]]) -> Row:
    sign = 1 if metric.higher else -1
    gains = {
        name: (values["field"] - one) * sign
        for name, one in values.items()
        if name != "field" and math.isfinite(one[0]) and math.isfinite(values["field"][0])
    }
    # The AP of segments has fewer samples.
    last = AP_DRAWS + 1 if metric.name == "mask_ap50" else None
    every = np.array([*values.values(), *gains.values()])
    estimates = bootstrap.estimates(every[:, :last])
    sources = dict(zip(values, estimates, strict=False))
    return Row(metric, layer, n, sources, dict(zip(gains, estimates[len(values) :], strict=True)))


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

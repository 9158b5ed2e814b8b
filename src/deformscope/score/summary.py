"""Metrics of all photos of a run with intervals, for the offsets and all nulls, by view, size and class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array

from ..metrics import bootstrap
from .metrics import (
    AP_DRAWS,
    METRICS,
    Drawn,
    Metric,
    Objects,
    counted,
    largest,
    object_metrics,
    only,
    photo_metrics,
    segment_metrics,
)
from .nulls import NULLS
from .records import Column, Record, Table, table
from .scores import VIEWS, Part, Row, Scores

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

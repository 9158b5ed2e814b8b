"""All figures of a run with intervals and nulls: over all photos, for the best layer, by size, class and view."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field as dataclass_field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ...metrics import bootstrap
from ..measures.nulls import NULLS
from .columns import Column, Record, Table, table
from .metrics import (
    AP_DRAWS,
    FIGURES,
    Drawn,
    Figure,
    counted,
    largest,
    object_figures,
    only,
    photo_figures,
    segment_figures,
)

Array = np.ndarray
VIEWS = ("whole", "crop")
LEAST = 10
"""Photos (or objects) from which on a part of them gets figures of its own."""
BLOCK = 4_000_000
"""Weights handled at once."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One figure at one layer: of the offsets, of every null, and the paired differences between them."""

    figure: Figure
    layer: str
    n: int
    sources: dict[str, Estimate]
    """``field`` and the nulls."""
    gains: dict[str, Estimate]
    """How much better than each null the offsets are, in the figure's unit; worse is negative."""

    @property
    def unbeaten(self) -> tuple[str, ...]:
        """The nulls that the offsets do not beat: the gain's interval holds zero or less. The detector's own boxes are
        no null in this sense, since they are what it was taught."""
        return tuple(name for name, gain in self.gains.items() if name != "filled" and not gain.low > 0)

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.gains:
            return "no null applies"
        return "beats every null" if not self.unbeaten else "does not beat " + ", ".join(self.unbeaten)


@dataclass(frozen=True)
class Part:
    """Figures of one part of the photos or objects: a row for each layer and figure."""

    name: str
    photos: int
    objects: int
    rows: tuple[Row, ...]
    best: tuple[Row, ...] = ()
    """A row a figure, of the layer that was best on one half of the photos, measured on the other."""


@dataclass(frozen=True)
class Scores:
    """What ``score`` returns, and ``scores.json`` holds."""

    run: dict[str, Any]
    """What was measured, with what, on what."""
    parts: tuple[Part, ...]
    """``whole``, ``crop``, ``several objects``, ``size S`` …, ``class cat`` …"""
    problems: dict[str, list[str]] = dataclass_field(default_factory=dict)
    """Photos that gave no figures, by reason."""

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return next((part for part in self.parts if part.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN as null."""
        return {
            "run": self.run,
            "problems": self.problems,
            "figures": {f.name: {"claim": f.claim, "text": f.text, "unit": f.unit} for f in FIGURES},
            "parts": [
                {
                    "name": part.name,
                    "photos": part.photos,
                    "objects": part.objects,
                    "best": [_row(row) for row in part.best],
                    "rows": [_row(row) for row in part.rows],
                }
                for part in self.parts
            ],
        }


def summarise(records: Callable[[], Iterable[Record]], run: dict[str, Any], count: int | None = None) -> Scores:
    """Figures of a run's records, which are read once for each view.

    ``count`` bootstrap draws; by default 200-1000, fewer where there are many objects.
    """
    parts: list[Part] = []
    for view in VIEWS:
        one = table(records(), view)
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
        if record["status"] != "scored":
            problems.setdefault(record["status"], []).append(f"{record['file']}: {record['note']}")
        elif record.get("broken"):
            problems.setdefault("offsets not finite", []).append(f"{record['file']}: {', '.join(record['broken'])}")
    return Scores(run | {"records": total}, tuple(parts), problems)


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
        # Figures of whole photos go by the largest object; of those with several objects all count.
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
    shown = FIGURES if segments else [f for f in FIGURES if f.name not in ("mask_ap", "mask_ap50", "ar100")]
    rows = []
    kept: dict[str, Drawn] = {}  # the nulls that know no layer are drawn once
    for layer in one.layers if layers is None else layers:
        figures: dict[str, Drawn] = {}
        for source in ("field", *NULLS):
            column = one.column(layer, source)
            if column is None:
                continue
            shared = source not in one.columns[layer]
            if not shared or source not in kept:
                result = _in_blocks(one, column, draws, half, photos, segments)
                if shared:
                    kept[source] = result
            figures[source] = kept[source] if shared else result
        for figure in shown:
            of_photos = figure.of == "photos" and photos is not None
            n = counted(one, figure, draws[0] * photos if of_photos and photos is not None else draws[0])
            rows.append(_compare(figure, layer, n, {s: d[figure.name] for s, d in figures.items()}))
    return tuple(rows)


def _in_blocks(
    one: Table,
    column: Column,
    draws: Float[Array, "b n"],
    half: Bool[Array, " n"],
    photos: Bool[Array, " n"] | None,
    segments: bool,
) -> Drawn:
    """All figures of a column, those of objects in blocks of draws, so that memory does not grow with draws · objects.

    A part's ``photos`` only narrow the figures that are of photos.
    """
    step = max(1, BLOCK // max(len(one.owner), 1))
    blocks = [object_figures(one, column, draws[i : i + step], half) for i in range(0, len(draws), step)]
    result = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    weights = draws if photos is None else draws * photos
    result |= photo_figures(one, column, weights, half)
    return result | segment_figures(one, column, weights) if segments else result


def _best(one: Table, draws: Float[Array, "b n"]) -> tuple[Row, ...]:
    """For each figure the layer that is best on one half of the photos, measured on the other half."""
    if min(one.half.sum(), (~one.half).sum()) < LEAST:
        return ()
    plain: dict[str, dict[str, float]] = {}
    for row in _rows(one, draws[:1] * ~one.half, one.quarter):
        plain.setdefault(row.figure.name, {})[row.layer] = row.sources["field"].value * (1 if row.figure.higher else -1)
    chosen = {
        name: max(values, key=lambda layer: values[layer] if math.isfinite(values[layer]) else -math.inf)
        for name, values in plain.items()
    }
    measured = _rows(one, draws * one.half, one.quarter, layers=sorted(set(chosen.values())))
    return tuple(row for row in measured if chosen[row.figure.name] == row.layer)


def _compare(figure: Figure, layer: str, n: int, values: dict[str, Float[Array, " b"]]) -> Row:
    sources = {name: _estimate(figure, one) for name, one in values.items()}
    gains = {}
    for name, one in values.items():
        if name != "field" and math.isfinite(one[0]) and math.isfinite(values["field"][0]):
            gains[name] = _estimate(figure, (values["field"] - one) * (1 if figure.higher else -1))
    return Row(figure, layer, n, sources, gains)


def _estimate(figure: Figure, values: Float[Array, " b"]) -> Estimate:
    draws = values[1 : AP_DRAWS + 1] if figure.name in ("mask_ap", "mask_ap50") else values[1:]
    return Estimate(float(values[0]), *bootstrap.interval(draws))


def _row(row: Row) -> dict[str, Any]:
    return {
        "figure": row.figure.name,
        "layer": row.layer,
        "n": row.n,
        "of": row.figure.of,
        "sources": {name: _numbers(one) for name, one in row.sources.items()},
        "gains": {name: _numbers(one) for name, one in row.gains.items()},
        "verdict": row.verdict,
    }


def _numbers(one: Estimate) -> list[float | None]:
    return [round(v, 6) if math.isfinite(v) else None for v in (one.value, one.low, one.high)]

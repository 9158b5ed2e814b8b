"""What a run of ``score`` found: every metric of every layer, with intervals, beside its nulls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field as dataclass_field
from typing import Any

from .metrics import METRICS, Metric


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One metric at one layer: of the offsets, of every null, and the paired differences between them."""

    metric: Metric
    layer: str
    n: int
    sources: dict[str, Estimate]
    """``field`` and the nulls."""
    gains: dict[str, Estimate]
    """How much better than each null the offsets are, in the metric's unit; worse is negative."""

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
    """Metrics of one part of the photos or objects: a row for each layer and metric."""

    name: str
    photos: int
    objects: int
    rows: tuple[Row, ...]
    best: tuple[Row, ...] = ()
    """One row per metric, of the layer that was best on one half of the photos, measured on the other."""


@dataclass(frozen=True)
class Scores:
    """What ``score`` returns, and ``scores.json`` holds."""

    run: dict[str, Any]
    """What was measured, with what, on what."""
    parts: tuple[Part, ...]
    """``whole``, ``crop``, ``several objects``, ``size S`` …, ``class cat`` …"""
    problems: dict[str, list[str]] = dataclass_field(default_factory=dict)
    """Photos that gave no metrics, by reason."""

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return next((part for part in self.parts if part.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN as null."""
        return {
            "run": self.run,
            "problems": self.problems,
            "figures": {f.name: {"claim": f.claim, "text": f.text, "unit": f.unit} for f in METRICS},
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


def _row(row: Row) -> dict[str, Any]:
    return {
        "figure": row.metric.name,
        "layer": row.layer,
        "n": row.n,
        "of": row.metric.of,
        "sources": {name: _numbers(one) for name, one in row.sources.items()},
        "gains": {name: _numbers(one) for name, one in row.gains.items()},
        "verdict": row.verdict,
    }


def _numbers(one: Estimate) -> list[float | None]:
    return [round(v, 6) if math.isfinite(v) else None for v in (one.value, one.low, one.high)]

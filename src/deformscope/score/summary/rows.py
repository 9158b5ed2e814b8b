"""Rows: a metric's values with intervals for the offsets and all nulls; and parts of a run, which hold rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .metrics import METRICS, Metric

VIEWS = {"whole": "whole photos", "crop": "off-centre crops"}
"""Parts with all photos."""


@dataclass(frozen=True)
class Estimate:
    """A metric's value with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One metric at one layer: for the offsets and every null, and their paired differences."""

    metric: Metric
    layer: str
    n: int
    sources: dict[str, Estimate]
    """``field`` and the nulls."""
    gains: dict[str, Estimate]
    """How much better than each null the offsets are, in the metric's unit; worse is negative."""

    @property
    def unbeaten(self) -> tuple[str, ...]:
        """The nulls that the offsets do not beat, for which the interval of the gain is not above zero. The detected
        boxes do not count, since the detector was trained to find them."""
        return tuple(name for name, gain in self.gains.items() if name != "filled" and not gain.low > 0)

    @property
    def verdict(self) -> str:
        """The comparison in words."""
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


def with_interval(one: Estimate) -> str:
    """``0.830 [0.790, 0.870]``."""
    return f"{number(one.value)} [{number(one.low)}, {number(one.high)}]" if math.isfinite(one.value) else "–"


def number(value: float) -> str:
    """Three digits, a true minus sign, a dash for NaN."""
    # Adding zero makes a negative zero positive.
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def part_to_json(part: Part) -> dict[str, Any]:
    """Plain data; NaN as null."""
    return {
        "name": part.name,
        "photos": part.photos,
        "objects": part.objects,
        "best": [_row_to_json(row) for row in part.best],
        "rows": [_row_to_json(row) for row in part.rows],
    }


def part_from_json(content: Mapping[str, Any]) -> Part:
    """What :func:`part_to_json` made, to six digits. Raises KeyError, TypeError or ValueError for anything else."""
    best, rows = (tuple(_row_from_json(row) for row in content[key]) for key in ("best", "rows"))
    return Part(str(content["name"]), int(content["photos"]), int(content["objects"]), rows, best)


def _row_to_json(row: Row) -> dict[str, Any]:
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


_METRICS = {metric.name: metric for metric in METRICS}


def _row_from_json(content: Mapping[str, Any]) -> Row:
    sources, gains = ({name: _estimate(one) for name, one in content[key].items()} for key in ("sources", "gains"))
    return Row(_METRICS[content["figure"]], str(content["layer"]), int(content["n"]), sources, gains)


def _estimate(numbers: Sequence[float | None]) -> Estimate:
    value, low, high = (math.nan if number is None else float(number) for number in numbers)
    return Estimate(value, low, high)

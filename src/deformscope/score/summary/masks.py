"""Average precision and IoU of masks from several sources over all photos, with intervals and paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ...metrics import bootstrap
from ...metrics.matching import IOUS, Matches, Pooled, average_precision
from ..measures.mask_bars import BARS, BOXES, OWN, Record

Array = np.ndarray
COMPARED = ("filled", "grabcut")
"""With which bars every source is compared."""


@dataclass(frozen=True)
class Value:
    """A number with its 95 % interval over photos; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class MaskRow:
    """What one source of masks is worth: AP in percent, IoU from 0 to 1."""

    source: str
    name: str
    values: Mapping[str, Value]
    """``ap``, ``ap50``, ``ap75``: COCO's, mean of the classes; ``any_ap``, ``any_ap50``: without classes; ``iou``: with
    the object, of the detections that find one; ``true_iou``: the same in the annotated boxes."""
    gains: Mapping[str, Mapping[str, Value]]
    """By another source: this one's value less that one's, paired over photos."""


@dataclass(frozen=True)
class MaskScores:
    """Masks measured on a folder: :func:`deformscope.score.masks.measure_masks` returns them.

    Example:
        >>> MaskScores("no masks", photos=0, objects=0, classes=("cat",), rows=()).to_json()["photos"]
        0
    """

    title: str
    photos: int
    objects: int
    classes: tuple[str, ...]
    rows: tuple[MaskRow, ...]

    def row(self, source: str) -> MaskRow:
        """The row of a source, such as ``grabcut``."""
        return next(row for row in self.rows if row.source == source)

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN as null."""

        def plain(values: Mapping[str, Value]) -> dict[str, list[float | None]]:
            return {
                name: [round(v, 4) if math.isfinite(v) else None for v in (one.value, one.low, one.high)]
                for name, one in values.items()
            }

        rows = [
            {"source": row.source, "name": row.name, "values": plain(row.values)}
            | {"gains": {other: plain(gains) for other, gains in row.gains.items()}}
            for row in self.rows
        ]
        heads = {"photos": self.photos, "objects": self.objects, "classes": list(self.classes)}
        return {"title": self.title, **heads, "rows": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MaskScores:
        """What :meth:`to_json` made. Raises KeyError, TypeError or ValueError for anything else."""

        def values(plain: Mapping[str, Sequence[float | None]]) -> dict[str, Value]:
            found = {}
            for name, numbers in plain.items():
                value, low, high = (math.nan if one is None else float(one) for one in numbers)
                found[str(name)] = Value(value, low, high)
            return found

        rows = tuple(
            MaskRow(
                str(row["source"]),
                str(row["name"]),
                values(row["values"]),
                {str(other): values(gains) for other, gains in row["gains"].items()},
            )
            for row in content["rows"]
        )
        classes = tuple(str(name) for name in content["classes"])
        return cls(str(content["title"]), int(content["photos"]), int(content["objects"]), classes, rows)

    def to_markdown(self) -> str:
        """A table."""
        compared = [bar for bar in COMPARED if any(row.source == bar for row in self.rows)]
        heads = ["masks", "AP", "AP50", "AP75", "IoU", "IoU in true boxes", "AP without classes"]
        heads += [f"AP over {BARS[bar]}" for bar in compared]
        lines = [f"### Masks, {self.photos} photos, {self.objects} objects", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        for row in self.rows:
            cells = [shown(row.values.get("ap"), 1, interval=True)]
            cells += [shown(row.values.get(name), 1) for name in ("ap50", "ap75")]
            cells += [shown(row.values.get(name), 3) for name in ("iou", "true_iou")]
            cells.append(shown(row.values.get("any_ap"), 1))
            cells += [shown(row.gains.get(bar, {}).get("ap"), 1, interval=True) for bar in compared]
            lines.append("| " + " | ".join([row.name, *cells]) + " |")
        lines += ["", f"AP: mean of {', '.join(self.classes)}. Intervals: 95 %, bootstrap over photos."]
        return "\n".join(lines) + "\n"

    __str__ = to_markdown


def summarise_masks(records: Sequence[Record], classes: Sequence[str], title: str = "", count: int = 300) -> MaskScores:
    """Metrics of every source over all photos, with intervals, and the paired differences of all pairs."""
    weights = bootstrap.draws(len(records), count)
    present = {name for record in records for name in record["objects"]}
    classes = tuple(name for name in classes if name in present)
    sources = list(dict.fromkeys(source for record in records for source in record["sources"]))
    drawn = {source: resampled_masks(records, source, classes, weights) for source in sources}
    rows = []
    for source, own in drawn.items():
        gains = {
            other: {name: _value(own[name] - those[name]) for name in own if name in those}
            for other, those in drawn.items()
            if other != source
        }
        name = (BARS | OWN | {BOXES: "for comparison: the boxes themselves"}).get(source, source)
        rows.append(MaskRow(source, name, {key: _value(one) for key, one in own.items()}, gains))
    objects = sum(name in classes for record in records for name in record["objects"])
    return MaskScores(title, len(records), objects, classes, tuple(rows))


def _value(drawn: Float[Array, " b"]) -> Value:
    return Value(float(drawn[0]), *bootstrap.interval(drawn[1:]))


def resampled_masks(
    records: Sequence[Record], source: str, classes: Sequence[str], weights: Float[Array, "b n"]
) -> dict[str, Float[Array, " b"]]:
    """Each metric of a source on all photos, then on each sample."""
    ones = [record["sources"].get(source) for record in records]
    without = [
        _matches(record["scores"] if one is None else one.get("scores", record["scores"]), one, "any", None, record)
        for record, one in zip(records, ones, strict=True)
    ]
    ap = 100 * average_precision(Pooled.of(without), weights)
    found = {"any_ap": ap.mean(axis=1), "any_ap50": ap[:, 0]}
    if not any(one is not None and "own" in one for one in ones):
        return found
    by_class = []
    for name in classes:
        matched = [_matches(r["scores"], one, "own", name, r) for r, one in zip(records, ones, strict=True)]
        by_class.append(100 * average_precision(Pooled.of(matched), weights))
    stacked = np.array(by_class)
    # A class counts in a sample that has an object of it.
    there = np.isfinite(stacked)
    mean = np.where(there, stacked, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    found |= {"ap": mean.mean(axis=1), "ap50": mean[:, 0], "ap75": mean[:, IOUS.index(0.75)]}
    for name in ("iou", "true_iou"):
        pairs = [
            [v for v, label in zip((one or {}).get(name, []), r["objects"], strict=False) if v is not None]
            if one is not None
            else []
            for r, one in zip(records, ones, strict=True)
        ]
        total = np.array([sum(values) for values in pairs])
        number = weights @ np.array([len(values) for values in pairs])
        if number[0]:
            found[name] = (weights @ total) / np.maximum(number, 1e-9)
    return found


def _matches(
    scores: Sequence[float], one: Mapping[str, Any] | None, key: str, label: str | None, record: Record
) -> Matches:
    hit, skipped = ([], []) if one is None else one[key]
    kept = range(len(hit)) if label is None else [i for i, name in enumerate(record["labels"]) if name == label]
    if one is None:
        kept = []
    bits = 2 ** np.arange(len(IOUS))[:, None]
    number = len(record["objects"]) if label is None else record["objects"].count(label)
    hits, skips = (np.array([those[i] for i in kept], dtype=int)[None] & bits > 0 for those in (hit, skipped))
    return Matches(np.array([scores[i] for i in kept], dtype=float), hits, skips, number)


def shown(one: Value | None, digits: int, *, interval: bool = False) -> str:
    """A number as text, perhaps with its interval."""
    if one is None or not math.isfinite(one.value):
        return "–"
    text = f"{one.value:.{digits}f}"
    if interval and math.isfinite(one.low):
        text += f" [{one.low:.{digits}f}, {one.high:.{digits}f}]"
    return text.replace("-", "−")

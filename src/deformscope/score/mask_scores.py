"""The records of masks from several sources, and their average precision and IoU over all photos with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from ..datasets.values import Identifier
from ..metrics import bootstrap
from ..metrics.bootstrap import Estimate
from ..metrics.matching import IOUS, Matches, Pooled, average_precision
from .records import Bits, Matched

BARS = {
    "filled": "filled box",
    "ellipse": "inscribed ellipse",
    "grabcut": "GrabCut in the box",
    "grabcut_ellipse": "GrabCut seeded by the ellipse",
}
OWN = {"masks": "the detector's masks", "grabcut_masks": "GrabCut seeded by the detector's masks"}
BOXES = "boxes"
"""Not masks but the detected boxes against the annotated ones: what masks of them could reach."""
COMPARED = ("filled", "grabcut")
"""With which bars every source is compared."""
COLUMNS = {
    "ap": ("AP", 1),
    "ap50": ("AP50", 1),
    "ap75": ("AP75", 1),
    "iou": ("IoU", 3),
    "true_iou": ("IoU in true boxes", 3),
    "any_ap": ("AP without classes", 1),
}
"""Of the table: metrics with their headings and digits."""


@dataclass(frozen=True)
class Source:
    """What one source of masks finds on a photo."""

    any: Bits
    """Without classes."""
    own: Bits | None = None
    """With objects of the same class; None for segments, which have none."""
    iou: tuple[float | None, ...] = ()
    """Of each object that counts, with the mask of the detection that finds it; None where none does."""
    true_iou: tuple[float, ...] = ()
    """Of each object that counts, with the mask that is made in its annotated box."""
    scores: tuple[float, ...] | None = None
    """Of segments; None where they are the detections'."""


@dataclass(frozen=True)
class MaskRecord:
    """What a run knows of the masks of one photo."""

    image: Identifier
    run: str
    """Of which run, as a digest."""
    objects: tuple[str, ...]
    """Classes of the objects that count."""
    labels: tuple[str, ...]
    """Classes of the detections, best first."""
    scores: tuple[float, ...]
    sources: Mapping[str, Source]

    def line(self) -> str:
        """The record as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_line(cls, line: str) -> MaskRecord | None:
        """The record that :meth:`line` wrote; None for a line that was cut off."""
        try:
            content = json.loads(line)
            sources = {
                name: Source(**{key: one[key] for key in Source.__dataclass_fields__ if key in one})
                for name, one in content["sources"].items()
            }
            texts = {key: tuple(content[key]) for key in ("objects", "labels", "scores")}
            return cls(content["image"], content.get("run", ""), sources=sources, **texts)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def matches(self, source: str, classes: str | None = None) -> Matches:
        """The masks of a source, matched with the objects of one class, or of any."""
        one = self.sources.get(source)
        bits = None if one is None else one.any if classes is None else one.own
        kept = [i for i, label in enumerate(self.labels) if label == classes]
        hit, skipped = ((), ()) if bits is None else bits
        scores = self.scores if one is None or one.scores is None else one.scores
        if classes is None:
            kept = list(range(len(hit)))
        elif bits is None:
            kept = []
        hit, skipped = (tuple(values[i] for i in kept) for values in (hit, skipped))
        number = len(self.objects) if classes is None else self.objects.count(classes)
        return Matched(tuple(scores[i] for i in kept), hit, skipped).matches(number)


def read_mask_records(path: Path) -> list[MaskRecord]:
    """The records of a file of lines; none where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [record for line in lines if (record := MaskRecord.of_line(line)) is not None]


@dataclass(frozen=True)
class MaskRow:
    """What one source of masks is worth: AP in percent, IoU from 0 to 1."""

    source: str
    name: str
    values: Mapping[str, Estimate]
    """``ap``, ``ap50``, ``ap75``: COCO's, mean of the classes; ``any_ap``, ``any_ap50``: without classes; ``iou``: with
    the object, of the detections that find one; ``true_iou``: the same in the annotated boxes."""
    gains: Mapping[str, Mapping[str, Estimate]]
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

        def plain(values: Mapping[str, Estimate]) -> dict[str, list[float | None]]:
            return {name: one.to_json(4) for name, one in values.items()}

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

        def values(plain: Mapping[str, Sequence[float | None]]) -> dict[str, Estimate]:
            return {str(name): Estimate.from_json(numbers) for name, numbers in plain.items()}

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

    @property
    def bars(self) -> list[str]:
        """The bars of :data:`COMPARED` that were measured."""
        return [bar for bar in COMPARED if any(row.source == bar for row in self.rows)]

    def headings(self) -> list[str]:
        """Headings of the table."""
        return ["masks", *(words for words, _ in COLUMNS.values()), *(f"AP over {BARS[bar]}" for bar in self.bars)]

    def cells(self, row: MaskRow) -> list[str]:
        """A row of the table, as text."""
        shown = [
            row.values[name].text(digits, interval=name == "ap") if name in row.values else "–"
            for name, (_, digits) in COLUMNS.items()
        ]
        gains = [row.gains.get(bar, {}).get("ap") for bar in self.bars]
        return [row.name, *shown, *("–" if gain is None else gain.text(1) for gain in gains)]

    def to_markdown(self) -> str:
        """A table."""
        heads = self.headings()
        lines = [f"### Masks, {self.photos} photos, {self.objects} objects", ""]
        lines += ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
        lines += ["| " + " | ".join(self.cells(row)) + " |" for row in self.rows]
        lines += ["", f"AP: mean of {', '.join(self.classes)}. Intervals: 95 %, bootstrap over photos."]
        return "\n".join(lines) + "\n"

    __str__ = to_markdown


def summarise_masks(
    records: Sequence[MaskRecord], classes: Sequence[str], title: str = "", count: int = 300
) -> MaskScores:
    """Metrics of every source over all photos, with intervals, and the paired differences of all pairs."""
    weights = bootstrap.draws(len(records), count)
    present = {name for record in records for name in record.objects}
    classes = tuple(name for name in classes if name in present)
    sources = list(dict.fromkeys(source for record in records for source in record.sources))
    drawn = {source: resampled_masks(records, source, classes, weights) for source in sources}
    rows = []
    for source, own in drawn.items():
        gains = {
            other: {name: Estimate.of(own[name] - those[name]) for name in own if name in those}
            for other, those in drawn.items()
            if other != source
        }
        name = (BARS | OWN | {BOXES: "for comparison: the boxes themselves"}).get(source, source)
        rows.append(MaskRow(source, name, {key: Estimate.of(one) for key, one in own.items()}, gains))
    objects = sum(name in classes for record in records for name in record.objects)
    return MaskScores(title, len(records), objects, classes, tuple(rows))


def resampled_masks(
    records: Sequence[MaskRecord], source: str, classes: Sequence[str], weights: Float[Array, "b n"]
) -> dict[str, Float[Array, " b"]]:
    """Each metric of a source on all photos, then on each sample."""
    ap = 100 * average_precision(Pooled.of([record.matches(source) for record in records]), weights)
    found = {"any_ap": ap.mean(axis=1), "any_ap50": ap[:, 0]}
    ones = [record.sources.get(source) for record in records]
    if not any(one is not None and one.own is not None for one in ones):
        return found
    stacked = np.array(
        [
            100 * average_precision(Pooled.of([record.matches(source, name) for record in records]), weights)
            for name in classes
        ]
    )
    # A class counts in a sample that has an object of it.
    there = np.isfinite(stacked)
    mean = np.where(there, stacked, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    found |= {"ap": mean.mean(axis=1), "ap50": mean[:, 0], "ap75": mean[:, IOUS.index(0.75)]}
    for name in ("iou", "true_iou"):
        values = [[v for v in getattr(one, name, ()) if v is not None] for one in ones]
        number = weights @ np.array([len(several) for several in values])
        if number[0]:
            found[name] = (weights @ np.array([sum(several) for several in values])) / np.maximum(number, 1e-9)
    return found

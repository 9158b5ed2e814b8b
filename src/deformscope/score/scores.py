"""The scores of a run: every metric of every layer with intervals, compared with nulls; verdicts; tables."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..metrics.bootstrap import Estimate
from .records import NAMES, NULLS, Table


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

VIEWS = {"whole": "whole photos", "crop": "off-centre crops"}
"""Parts with all photos."""


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

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN as null."""
        return {
            "figure": self.metric.name,
            "layer": self.layer,
            "n": self.n,
            "of": self.metric.of,
            "sources": {name: one.to_json(6) for name, one in self.sources.items()},
            "gains": {name: one.to_json(6) for name, one in self.gains.items()},
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Row:
        """What :meth:`to_json` made, to six digits. Raises KeyError, TypeError or ValueError for anything else."""
        metric = next(metric for metric in METRICS if metric.name == content["figure"])
        sources, gains = (
            {str(name): Estimate.from_json(one) for name, one in content[key].items()} for key in ("sources", "gains")
        )
        return cls(metric, str(content["layer"]), int(content["n"]), sources, gains)


@dataclass(frozen=True)
class Part:
    """Metrics of one part of the photos or objects: a row for each layer and metric."""

    name: str
    photos: int
    objects: int
    rows: tuple[Row, ...]
    best: tuple[Row, ...] = ()
    """One row per metric, of the layer that was best on one half of the photos, measured on the other."""

    def to_json(self) -> dict[str, Any]:
        """Plain data; NaN as null."""
        best, rows = ([row.to_json() for row in those] for those in (self.best, self.rows))
        return {"name": self.name, "photos": self.photos, "objects": self.objects, "best": best, "rows": rows}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Part:
        """What :meth:`to_json` made, without metrics that only earlier versions had."""
        known = {metric.name for metric in METRICS}
        best, rows = (
            tuple(Row.from_json(row) for row in content[key] if row["figure"] in known) for key in ("best", "rows")
        )
        return cls(str(content["name"]), int(content["photos"]), int(content["objects"]), rows, best)


LEADING = {
    CONDENSATION: ("Features condense on objects", "pointing"),
    SEGMENTATION: ("Divergence segments objects", "auroc"),
    SIZE: ("Circles tell the size of objects", "spearman_centre"),
}
"""For each claim, a sentence and the leading metric."""
HOLDS, PARTLY, NOT_SHOWN, UNMEASURED = "holds", "holds in part", "not shown", "not measured"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim."""

    claim: str
    """The claim as a sentence."""
    rows: dict[str, Row]
    """The leading metric at its best layer, by view (``whole``, ``crop``)."""
    seen: tuple[str, ...] = ()
    """Views with too few photos to choose the layer on one half and measure on the other."""

    @property
    def answer(self) -> str:
        """``holds`` if the offsets beat every null in each view, ``holds in part`` if they do in one of two views."""
        if not self.rows:
            return UNMEASURED
        beaten = [not row.unbeaten for row in self.rows.values()]
        return HOLDS if all(beaten) else PARTLY if any(beaten) else NOT_SHOWN

    def reason(self, view: str) -> str:
        """The nulls that the offsets do not beat in a view, or the nearest of those that they beat."""
        row = self.rows[view]
        if row.unbeaten:
            return "does not beat " + ", ".join(_named(row, name) for name in row.unbeaten)
        nearest = min(
            (name for name in row.gains if name != "filled"), key=lambda name: row.gains[name].value, default=None
        )
        return "beats every null" + (f", the nearest is {_named(row, nearest)}" if nearest else "")


def verdicts(parts: Sequence[Part]) -> list[Verdict]:
    """The verdict for each claim."""
    views = [part for part in parts if part.name in VIEWS]
    found = []
    for claim, metric in LEADING.values():
        rows = {part.name: row for part in views if (row := _leading(part, metric)) is not None}
        found.append(Verdict(claim, rows, tuple(part.name for part in views if not part.best)))
    return found


def caveat(found: Sequence[Verdict]) -> str:
    """A note if there are few photos, else an empty text."""
    views = [words for view, words in VIEWS.items() if any(view in verdict.seen for verdict in found)]
    if not views:
        return ""
    return f"Few {' and '.join(views)}: the layer shown is the best on the same photos, which flatters it."


def _leading(part: Part, metric: str) -> Row | None:
    """A metric at its best layer, chosen on one half of the photos and measured on the other; on all if few."""
    rows = [row for row in part.best or part.rows if row.metric.name == metric and row.gains]
    return max(rows, key=lambda row: row.sources["field"].value, default=None)


def as_text(found: Sequence[Verdict]) -> str:
    """The verdicts for a terminal."""
    lines = []
    for verdict in found:
        lines += ["", f"{verdict.claim}: {verdict.answer}"]
        for view, row in verdict.rows.items():
            value = row.sources["field"].text()
            lines.append(f"  {VIEWS[view]:16}  {value:22}  {verdict.reason(view)}")
            lines.append(f"  {'':16}  {row.metric.text}, {row.n} {row.metric.of}, {row.layer}")
    if caveat(found):
        lines += ["", caveat(found)]
    return "\n".join(lines[1:])


def _named(row: Row, null: str) -> str:
    return f"{NAMES[null]} ({row.sources[null].text(interval=False)})"


@dataclass(frozen=True, repr=False)
class Scores:
    """The result of ``score``, as in ``scores.json``.

    Example:
        >>> from deformscope.score import read_scores
        >>> scores = read_scores("DIR")                         # of a finished run
        >>> [verdict.answer for verdict in scores.verdicts]     # print(scores) tells more
        ['not shown', 'not shown', 'not shown']
        >>> rows = scores.part("whole").best                    # metric, layer, n, sources, gains over each null
        >>> column = scores.views["whole"].column("heads.stride16.deform", "field")
        >>> len(column.image["auroc"])                          # photo by photo
        2
    """

    run: dict[str, Any]
    """Detector, data and settings."""
    parts: tuple[Part, ...]
    """``whole``, ``crop``, ``several objects``, ``size S`` …, ``class cat`` …"""
    problems: dict[str, list[str]] = field(default_factory=dict)
    """Photos without metrics, by reason."""
    views: Mapping[str, Table] = field(default_factory=dict, compare=False)
    """Numbers of each photo and object, for ``whole`` photos and for off-centre crops (``crop``)."""

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each of the paper's three claims."""
        return verdicts(self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data without the views; NaN as null."""
        return {
            "run": self.run,
            "problems": self.problems,
            "figures": {m.name: {"claim": m.claim, "text": m.text, "unit": m.unit} for m in METRICS},
            "parts": [part.to_json() for part in self.parts],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], views: Mapping[str, Table] | None = None) -> Scores:
        """What :meth:`to_json` made. Raises KeyError, TypeError or ValueError for anything else."""
        problems = {str(reason): [str(one) for one in files] for reason, files in content["problems"].items()}
        parts = tuple(Part.from_json(part) for part in content["parts"])
        return cls(dict(content["run"]), parts, problems, views or {})

    def __repr__(self) -> str:
        return f"Scores({', '.join(f'{part.name}: {part.photos} photos' for part in self.parts if part.name in VIEWS)})"

    def __str__(self) -> str:
        """The verdict for each claim, and the number of photos without metrics."""
        missing = [f"{len(files)} photos: {reason}" for reason, files in self.problems.items()]
        return "\n\n".join([self.title(), as_text(self.verdicts), *missing])

    def title(self) -> str:
        """The detector, and what it was measured on."""
        run = self.run
        file = run.get("file", f"{run.get('data', '')}/{run.get('annotations', '')}")
        photos = f"{run.get('records', '?')} of {run.get('photos', '?')} photos"
        return f"{run.get('detector', 'detector')} on {file}: {photos}"

    def _repr_html_(self) -> str:
        cells = []
        for verdict in self.verdicts:
            for view, row in verdict.rows.items():
                value = row.sources["field"].text()
                texts = (row.metric.text, VIEWS[view], value, verdict.reason(view), row.layer)
                head = f"<th rowspan={len(verdict.rows)}>{html.escape(verdict.claim)}<br>{verdict.answer}</th>"
                first = view == next(iter(verdict.rows))
                cells.append(f"<tr>{head * first}{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>")
        headings = ("claim", "metric", "view", "offsets [95 %]", "against the nulls", "layer")
        head = "".join(f"<th>{heading}</th>" for heading in headings)
        return f"<p>{html.escape(self.title())}</p><table><tr>{head}</tr>{''.join(cells)}</table>"


HEADINGS = ("metric", "layer", "n", "offsets [95 %]", *NULLS, "verdict")
SHORT = (
    "pointing",
    "sink_distance",
    "cosine",
    "iou",
    "auroc",
    "auroc_ring",
    "mask_ap50",
    "spearman_centre",
    "spearman_largest",
)
"""The metrics in the table of layers."""


def headline(part: Part) -> Sequence[Row]:
    """One row per metric, of the best layer on the other half of the photos; with few photos, of every layer."""
    order = {metric.name: number for number, metric in enumerate(METRICS)}
    return sorted(part.best or part.rows, key=lambda row: order[row.metric.name])


def title(part: Part) -> str:
    """Title of the table of a part."""
    return f"{VIEWS.get(part.name, part.name)}: {part.photos} photos, {part.objects} objects"


def caption(part: Part) -> str:
    """Caption of the table of a part."""
    chosen = "the layer that is best on one half of the photos, measured on the other; " if part.best else ""
    return chosen + "intervals: bootstrap over photos; √area: of the object's box"


def row_cells(row: Row) -> list[str]:
    """The cells of a row, for the columns :data:`HEADINGS`."""
    notes = [row.metric.unit] * (row.metric.unit != "share") + ["less is better"] * (not row.metric.higher)
    unit = f" ({', '.join(notes)})" if notes else ""
    nulls = [row.sources[name].text(interval=False) if name in row.sources else "–" for name in NULLS]
    return [row.metric.text + unit, row.layer, str(row.n), row.sources["field"].text(), *nulls, row.verdict]


def as_markdown(parts: Sequence[Part]) -> str:
    """Tables of whole photos, off-centre crops, photos with several objects, and the layers, for a results page."""
    named = {part.name: part for part in parts}
    lines: list[str] = []
    for name in ("whole", "crop", "several objects"):
        part = named.get(name)
        if part is None:
            continue
        lines += [f"### {title(part)[0].upper()}{title(part)[1:]}", "", caption(part).capitalize() + ".", ""]
        rows = headline(part)
        if not part.best:
            strongest = _strongest(part)
            rows = [row for row in rows if row.layer == strongest]
        lines += ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
        lines += ["| " + " | ".join(row_cells(row)) + " |" for row in rows]
        lines.append("")
    whole = named.get("whole")
    if whole is not None:
        found = {(row.layer, row.metric.name): row.sources["field"].text() for row in whole.rows}
        lines += [
            "### Layers, all photos",
            "",
            "| " + " | ".join(("layer", *SHORT)) + " |",
            "|" + "---|" * (1 + len(SHORT)),
        ]
        for layer in dict.fromkeys(row.layer for row in whole.rows):
            lines.append("| " + " | ".join([layer, *(found.get((layer, name), "–") for name in SHORT)]) + " |")
    return "\n".join(lines) + "\n"


def _strongest(part: Part) -> str:
    values = {row.layer: row.sources["field"].value for row in part.rows if row.metric.name == "auroc"}
    return max(values, key=lambda layer: values[layer] if math.isfinite(values[layer]) else -math.inf)

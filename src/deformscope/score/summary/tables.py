"""A run's metrics for the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..measures.nulls import NULLS
from .metrics import METRICS
from .scores import Estimate, Part, Row, Scores

if TYPE_CHECKING:
    from rich.table import Table

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
"""The metrics that a table of layers shows."""


def as_tables(scores: Scores) -> list[Table]:
    """Tables for the terminal: whole photos, off-centre crops, the layers, and what was not scored."""
    from rich.table import Table

    tables = []
    for name in ("whole", "crop"):
        part = scores.part(name)
        if part is None:
            continue
        table = Table(title=title(part), title_justify="left", caption=caption(part))
        for heading in HEADINGS:
            number = heading in NULLS or heading == "n"
            table.add_column(heading, justify="right" if number else "left", overflow="fold")
        claim = ""
        for row in headline(part):
            if row.metric.claim != claim:
                claim = row.metric.claim
                table.add_section()
                table.add_row(f"[bold]{claim}[/]")
            cells = row_cells(row)
            colour = "green" if row.gains and not row.unbeaten else "yellow"
            table.add_row(*cells[:-1], f"[{colour}]{cells[-1]}[/]")
        tables.append(table)
    whole = scores.part("whole")
    if whole is not None:
        table = Table(title="layers, all photos", title_justify="left")
        for heading in layer_headings():
            table.add_column(heading, justify="left" if heading == "layer" else "right", overflow="fold")
        for cells in layer_rows(whole):
            table.add_row(*cells)
        tables.append(table)
    if scores.problems:
        table = Table(title="not scored", title_justify="left")
        for heading in ("reason", "photos", "the first"):
            table.add_column(heading, overflow="fold")
        for reason, files in scores.problems.items():
            table.add_row(reason, str(len(files)), files[0])
        tables.append(table)
    return tables


def headline(part: Part) -> Sequence[Row]:
    """One row per metric, in their order: the best layer's on the unseen half, else every layer's on all."""
    order = {metric.name: number for number, metric in enumerate(METRICS)}
    return sorted(part.best or part.rows, key=lambda row: order[row.metric.name])


def title(part: Part) -> str:
    """What a table is of."""
    words = {"whole": "whole photos", "crop": "off-centre crops"}.get(part.name, part.name)
    return f"{words}: {part.photos} photos, {part.objects} objects"


def caption(part: Part) -> str:
    """How to read it."""
    chosen = "the layer that is best on one half of the photos, measured on the other; " if part.best else ""
    return chosen + "intervals: bootstrap over photos; √area: of the object's box"


def row_cells(row: Row) -> list[str]:
    """One row's texts, under :data:`HEADINGS`."""
    unit = (
        "" if row.metric.unit == "share" else f" ({row.metric.unit}{'' if row.metric.higher else ', less is better'})"
    )
    if row.metric.unit == "share" and not row.metric.higher:
        unit = " (less is better)"
    nulls = [_number(row.sources[name].value) if name in row.sources else "–" for name in NULLS]
    return [row.metric.text + unit, row.layer, str(row.n), with_interval(row.sources["field"]), *nulls, row.verdict]


def layer_headings() -> list[str]:
    """Headings of the table of layers."""
    return ["layer", *SHORT]


def layer_rows(part: Part) -> list[list[str]]:
    """One row per layer: its metrics with intervals."""
    layers = list(dict.fromkeys(row.layer for row in part.rows))
    found = {(row.layer, row.metric.name): row for row in part.rows}
    return [
        [
            layer,
            *(with_interval(found[layer, name].sources["field"]) if (layer, name) in found else "–" for name in SHORT),
        ]
        for layer in layers
    ]


def with_interval(one: Estimate) -> str:
    """``0.83 [0.79, 0.87]``."""
    return f"{_number(one.value)} [{_number(one.low)}, {_number(one.high)}]" if math.isfinite(one.value) else "–"


def _number(value: float) -> str:
    # Adding zero makes a negative zero positive.
    return f"{round(value, 3) + 0.0:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def as_markdown(scores: Scores) -> str:
    """The same tables as Markdown, for a results page."""
    lines: list[str] = []
    for name in ("whole", "crop", "several objects"):
        part = scores.part(name)
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
    whole = scores.part("whole")
    if whole is not None:
        lines += ["### Layers, all photos", "", "| " + " | ".join(layer_headings()) + " |"]
        lines.append("|" + "---|" * len(layer_headings()))
        lines += ["| " + " | ".join(cells) + " |" for cells in layer_rows(whole)]
    return "\n".join(lines) + "\n"


def _strongest(part: Part) -> str:
    values = {row.layer: row.sources["field"].value for row in part.rows if row.metric.name == "auroc"}
    return max(values, key=lambda layer: values[layer] if math.isfinite(values[layer]) else -math.inf)

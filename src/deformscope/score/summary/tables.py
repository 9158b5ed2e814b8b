"""A run's metrics as tables, in Markdown or cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..measures.nulls import NULLS
from .metrics import METRICS
from .rows import VIEWS, Part, Row, number, with_interval

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
    unit = (
        "" if row.metric.unit == "share" else f" ({row.metric.unit}{'' if row.metric.higher else ', less is better'})"
    )
    if row.metric.unit == "share" and not row.metric.higher:
        unit = " (less is better)"
    nulls = [number(row.sources[name].value) if name in row.sources else "–" for name in NULLS]
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
        lines += ["### Layers, all photos", "", "| " + " | ".join(layer_headings()) + " |"]
        lines.append("|" + "---|" * len(layer_headings()))
        lines += ["| " + " | ".join(cells) + " |" for cells in layer_rows(whole)]
    return "\n".join(lines) + "\n"


def _strongest(part: Part) -> str:
    values = {row.layer: row.sources["field"].value for row in part.rows if row.metric.name == "auroc"}
    return max(values, key=lambda layer: values[layer] if math.isfinite(values[layer]) else -math.inf)

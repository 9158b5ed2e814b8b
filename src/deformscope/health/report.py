"""A diagnosis for the terminal, for print() and for notebooks."""

from __future__ import annotations

import html
import io
import math
import shutil
import textwrap
from typing import TYPE_CHECKING

from .checks import BROKEN, SUSPECT

if TYPE_CHECKING:
    from rich.table import Table

    from .diagnose import Diagnosis, LayerHealth

HEADINGS = ("layer", "median |offset|", "largest", "map", "beyond map", "modulation", "verdict", "evidence and advice")
COLOURS = {BROKEN: "red", SUSPECT: "yellow", "healthy": "green"}
NARROWEST = 100
"""Characters: on less, the columns of a table are folded beyond recognition."""


def as_table(diagnosis: Diagnosis, title: str = "", *, said: bool = True) -> Table:
    """The diagnosis as a table for the terminal: a row per layer, with its findings (``said``) in the last column."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    for heading in HEADINGS if said else HEADINGS[:-1]:
        number = heading not in ("layer", "verdict", "evidence and advice")
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    if said:
        table.columns[-1].ratio = 1
    for layer in diagnosis.layers:
        *cells, verdict, findings = _cells(layer)
        row = [*map(escape, cells), f"[{COLOURS[verdict]}]{verdict}[/]"]
        table.add_row(*row, *([escape(findings)] if said else []))
    table.caption = caption(diagnosis)
    return table


def as_text(diagnosis: Diagnosis) -> str:
    """The table without colours, as wide as the terminal, and the findings below it."""
    from rich.console import Console

    width = max(NARROWEST, shutil.get_terminal_size((120, 24)).columns)
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(as_table(diagnosis, said=False))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    for finding in diagnosis.findings:
        said = f"{finding.layer}: {finding.ailment} ({finding.verdict}): {finding.evidence}"
        lines += ["", *textwrap.wrap(said, width), *textwrap.wrap(f"→ {finding.advice}", width)]
    return "\n".join(lines)


def as_html(diagnosis: Diagnosis) -> str:
    """The table for notebooks."""
    rows = [f"<tr>{''.join(f'<th>{heading}</th>' for heading in HEADINGS)}</tr>"]
    for layer in diagnosis.layers:
        *cells, verdict, said = _cells(layer)
        shown = [html.escape(cell) for cell in cells]
        shown += [f"<b>{verdict}</b>" if layer.findings else verdict, html.escape(said).replace("\n", "<br>")]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in shown)}</tr>")
    return f"<table>{''.join(rows)}</table><p>{html.escape(caption(diagnosis))}</p>"


def caption(diagnosis: Diagnosis) -> str:
    """Units, and how many images there were."""
    images = f"{diagnosis.images} image{'s'[: diagnosis.images != 1]}"
    lost = f", {len(diagnosis.unreadable)} could not be read" if diagnosis.unreadable else ""
    return f"lengths in cells of the map that is sampled · {images}{lost}"


def _cells(layer: LayerHealth) -> list[str]:
    """A layer's row: :data:`HEADINGS`; an en dash for what is not known."""
    known = not math.isnan(layer.beyond)
    return [
        layer.layer,
        _number(layer.median),
        _number(layer.largest),
        "×".join(map(str, layer.map_size)) if known else "–",
        f"{layer.beyond:.1%}" if known else "–",
        "–" if layer.modulation is None else f"{layer.modulation:.2f}",
        layer.verdict,
        "\n".join(f"{f.ailment}: {f.evidence}\n→ {f.advice}" for f in layer.findings),
    ]


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"

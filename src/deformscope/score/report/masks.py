"""The report's section on masks: how good they are beside masks that need no training, and what they look like."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure as Drawing

from ...analysis import Analysis
from ...draw import boxes
from ...draw.detections import shown_detections
from ...draw.own_settings import own_settings
from ...draw.style import FAINT, INK
from ..kept import AT_RANDOM, kept
from ..measures.mask_bars import BARS, BOXES, OWN
from ..summary.masks import COMPARED, MaskRow, MaskScores, Value, shown
from . import plots

EXAMPLES = 4
"""Photos whose masks are shown: the first ones in the random order on which the detector finds something."""
MIN_SCORE = 0.3
OWN_COLOUR, REFERENCE = "#d7191c", "#b0b0b0"
HUES = ("#e6194b", "#1e88e5", "#ffb300", "#43a047", "#8e24aa")
"""Of the masks on a photo."""
COLUMNS = {
    "ap": ("AP", 1),
    "ap50": ("AP50", 1),
    "ap75": ("AP75", 1),
    "iou": ("IoU", 3),
    "true_iou": ("IoU in true boxes", 3),
    "any_ap": ("AP without classes", 1),
}
"""Of the table: metrics with their headings and digits."""


def section(masks: MaskScores, folder: Path, layer: str) -> str:
    """The section as HTML; examples are photos that the run kept in ``folder`` with the field of ``layer``."""
    bars = [bar for bar in COMPARED if any(row.source == bar for row in masks.rows)]
    drawn = [row for row in masks.rows if "ap" in row.values]
    pictures = []
    if drawn:
        pictures.append(("AP of masks", absolute(drawn)))
    if bars and len(drawn) > 1:
        pictures.append((f"AP of masks over {BARS[bars[-1]]}", differences(drawn, bars[-1])))
    images = "".join(f"<img alt='{_text(words)}' src='{plots.data_url(one)}'>" for words, one in pictures)
    classes = ", ".join(masks.classes)
    return (
        f"<h2>Masks, {masks.photos} photos, {masks.objects} objects</h2><p>All are made of the same detected boxes "
        "with the same scores, so that differences are those of the masks alone. Masks that were learned should beat "
        f"GrabCut in the box, which needs no training.</p><div class=plots>{images}</div>{_table(masks, bars)}"
        f"<p class=faint>AP in percent: mean of {_text(classes)}. IoU: with the objects that the boxes find; in true "
        "boxes: of masks that are made in the annotated ones. Intervals: 95 %, bootstrap over photos, those of "
        f"differences paired. Segments are grown from offsets and have no class.</p>{_examples(folder, layer)}"
    )


@own_settings()
def absolute(rows: list[MaskRow]) -> Drawing:
    """AP of each source with its interval."""
    return _dots(rows, {row.source: row.values["ap"] for row in rows}, "AP of masks (%)")


@own_settings()
def differences(rows: list[MaskRow], bar: str) -> Drawing:
    """AP of each other source over that of ``bar``, with its paired interval."""
    values = {row.source: row.gains[bar]["ap"] for row in rows if row.source not in (bar, BOXES)}
    return _dots([row for row in rows if row.source in values], values, f"AP over {BARS[bar]}", zero=True)


def _dots(rows: list[MaskRow], values: Mapping[str, Value], words: str, *, zero: bool = False) -> Drawing:
    figure = Drawing(figsize=(5.2, 1.0 + 0.4 * len(rows)), facecolor="white", layout="constrained")
    ax = figure.subplots()
    for place, row in enumerate(rows):
        one, own = values[row.source], row.source in OWN
        if not math.isfinite(one.value):
            continue
        colour = OWN_COLOUR if own else REFERENCE if row.source == BOXES else INK
        ax.plot([one.low, one.high], [place] * 2, color=colour, lw=2.4 if own else 1.4)
        ax.plot(
            one.value, place, "o", ms=6 if own else 4.5, color=colour, mfc="white" if row.source == BOXES else colour
        )
    names = ["the boxes themselves" if row.source == BOXES else row.name for row in rows]
    ax.set_yticks(range(len(rows)), [textwrap.fill(name, 20) for name in names], fontsize=9)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.source in OWN else "normal")
    ax.set_ylim(len(rows) - 0.5, -0.5)
    if zero:
        ax.axvline(0, color=FAINT, lw=0.9, ls=":")
    else:
        ax.set_xlim(left=0)
    plots.measured_along(ax, words)
    return figure


def _table(masks: MaskScores, bars: list[str]) -> str:
    heads = ["masks", *(words for words, _ in COLUMNS.values()), *(f"AP over {BARS[bar]}" for bar in bars)]
    lines = []
    for row in masks.rows:
        cells = [row.name]
        cells += [shown(row.values.get(name), digits, interval=name == "ap") for name, (_, digits) in COLUMNS.items()]
        cells += [shown(row.gains.get(bar, {}).get("ap"), 1, interval=True) for bar in bars]
        lines.append("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{_text(one)}</th>" for one in heads)
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _examples(folder: Path, layer: str) -> str:
    parts: list[str] = []
    for index in range(AT_RANDOM):
        analysis = kept(folder, index, layer) if layer and len(parts) < EXAMPLES else None
        if analysis is None or analysis.detection is None or "masks" not in analysis.detection:
            continue
        if len(shown_detections(analysis.detection, MIN_SCORE)):
            parts.append(f"<img alt='masks of a photo' src='{plots.data_url(overlay(analysis), 'jpeg')}'>")
    if not parts:
        return ""
    return f"<h3>The detector's masks, first photos at random</h3><div class=photos>{''.join(parts)}</div>"


@own_settings()
def overlay(analysis: Analysis) -> Drawing:
    """A photo with the masks of its best detections, each in a colour of its own, and their boxes."""
    photo, found = analysis.photo, analysis.detection
    assert found is not None
    height, width = photo.shape[:2]
    figure = Drawing(figsize=(5.2, 5.2 * height / width), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.imshow(photo, extent=(0, width, height, 0))
    index = shown_detections(found, MIN_SCORE)
    for number, mask in enumerate(found["masks"][index].cpu().numpy().astype(bool)):
        hue = np.array([int(HUES[number % len(HUES)][i : i + 2], 16) / 255 for i in (1, 3, 5)])
        veil = np.zeros((height, width, 4))
        veil[mask] = [*hue, 0.5]
        ax.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")
    boxes(ax, found, analysis.class_names, min_score=MIN_SCORE)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    return figure


def _text(value: object) -> str:
    return html.escape(str(value))

"""Plots of the report: distances of sinks, circles against sizes, precision and recall, nulls, masks; and photos."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from ..analysis import Analysis
from ..draw import boxes, figure2, figure3
from ..draw.primitives import shown_detections
from ..draw.style import FAINT, INK, own_settings
from ..metrics.bootstrap import Estimate
from ..metrics.matching import Pooled, average_precision
from .mask_scores import BARS, BOXES, OWN, MaskRow
from .records import NAMES, NULLS, Table
from .scenes import LARGE, SMALL
from .scores import VIEWS, Row

COLOURS = {
    "field": "#d7191c",
    "fresh": "#7570b3",
    "shuffled": "#1b9e77",
    "noise": "#a6761d",
    "centre": "#2b6cb0",
    "zero": "#999999",
    "filled": "#e6ab02",
}
VIEW_COLOURS = {"whole": "#d7191c", "crop": "#2b6cb0"}
OWN_COLOUR, REFERENCE = "#d7191c", "#b0b0b0"
HUES = ("#e6194b", "#1e88e5", "#ffb300", "#43a047", "#8e24aa")
"""Of the masks on a photo."""
EXAMPLES = 4
"""Photos whose masks are shown: the first ones in the random order on which the detector finds something."""
MIN_SCORE = 0.3
"""Of the detections whose masks are shown."""


@own_settings()
def distances(table: Table, layer: str) -> Drawing:
    """Cumulative distribution of the distance between an object's sink and its centre, with nulls."""
    figure, ax = _axes("distance of an object's sink from its centre (√area)", "share of the objects")
    for source in ("field", *NULLS):
        column = table.column(layer, source)
        if column is None or source == "zero":
            continue
        values = np.sort(column.things["sink_distance"][np.isfinite(column.things["sink_distance"])])
        if len(values):
            share = np.arange(1, len(values) + 1) / len(values)
            ax.plot(values, share, color=COLOURS[source], lw=2.2 if source == "field" else 1.2, label=_label(source))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    _title(ax, layer, f"{len(table.owner)} objects; further up and left is better")
    return figure


@own_settings()
def sizes(table: Table, layer: str, place: str = "largest") -> Drawing:
    """Circles against sizes, one dot per object, with the one-parameter fit: ``place`` is centre or largest."""
    figure, ax = _axes("√(width · height) of the object's box (px)", "radius r of the circle (px)")
    column = table.column(layer, "field")
    assert column is not None
    radius, size = column.things[f"r_{place}"], np.sqrt(table.size.prod(axis=1))
    seen = np.isfinite(radius) & (radius > 0)
    none = int((np.isfinite(radius) & (radius <= 0)).sum())
    if seen.any():
        colours = np.array([{"S": "#7570b3", "M": "#1b9e77", "L": "#d95f02"}[name] for name in table.area_class])
        ax.scatter(size[seen], radius[seen], s=9, c=colours[seen], alpha=0.5, linewidths=0)
        factor = float(np.median(size[seen] / radius[seen]))
        line = np.array([size[seen].min(), size[seen].max()])
        ax.plot(line, line / factor, color=INK, lw=1.2, label=f"√(wh) = {factor:.2f} · r")
        ax.set(xscale="log", yscale="log", ylim=np.percentile(radius[seen], [0.5, 100]) * [0.8, 1.2])
        ticks = [value for value in (10, 20, 50, 100, 200, 500, 1000) if line[0] * 0.7 <= value <= line[1] * 1.4]
        ax.set_xticks(ticks, [str(value) for value in ticks])
        ax.minorticks_off()
        for bound in (math.sqrt(SMALL), math.sqrt(LARGE)):
            ax.axvline(bound, color=FAINT, lw=0.6, ls=":")
        ax.legend(frameon=False, fontsize=8)
    words = {"centre": "at the box's centre", "largest": "the largest on the object"}[place]
    _title(ax, layer, f"circles {words}; {int(seen.sum())} objects" + (f", {none} more with r = 0" if none else ""))
    return figure


@own_settings()
def precision_recall(table: Table, layer: str) -> Drawing:
    """Class-agnostic precision and recall of the segments at IoU 0.5, with nulls."""
    figure, ax = _axes("recall", "precision")
    counts = table.masked.astype(float) if table.masked.any() else np.ones(len(table.names))
    for source in ("field", *NULLS):
        column = table.column(layer, source)
        if column is None or source == "zero":
            continue
        pooled = Pooled.of(column.matches)
        objects, weights = float(counts @ pooled.objects), counts[pooled.image]
        right = np.cumsum(pooled.hit[0] * weights)
        wrong = np.cumsum(~(pooled.hit[0] | pooled.skipped[0]) * weights)
        if not objects or not len(right):
            continue
        area = average_precision(pooled, counts[None])[0, 0]
        ax.plot(
            right / objects,
            right / np.maximum(right + wrong, 1),
            color=COLOURS[source],
            lw=2.2 if source == "field" else 1.2,
            label=f"{_label(source)}, AP {area:.3f}",
        )
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False, fontsize=8)
    _title(ax, layer, "segments grown from the field, class-agnostic, IoU 0.5")
    return figure


@own_settings()
def spread(table: Table, layer: str, name: str, words: str) -> Drawing:
    """Histogram of a metric over photos, with that of the photo's centre."""
    figure, ax = _axes(words, "photos")
    bins = np.linspace(0, 1, 26).tolist()
    for source in ("centre", "field"):
        column = table.column(layer, source)
        if column is None:
            continue
        values = column.image[name]
        values = values[np.isfinite(values) & (table.masked | ~table.masked.any())]
        ax.hist(values, bins, color=COLOURS[source], alpha=0.55 if source == "field" else 0.35, label=_label(source))
        if len(values):
            ax.axvline(float(values.mean()), color=COLOURS[source], lw=1.5)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    _title(ax, layer, "lines: means")
    return figure


def photo_panels(analysis: Analysis, layer: str) -> list[Drawing]:
    """Figures 2 and 3 of one photo at one layer."""
    name, _, group = layer.partition(":")
    field, chosen = analysis.fields[name], int(group or 0)
    found = analysis.detection
    return [
        figure2(field, analysis.photo, detection=found, class_names=analysis.class_names, group=chosen),
        figure3(field, analysis.photo, group=chosen),
    ]


@own_settings()
def against_nulls(rows: Mapping[str, Row]) -> Drawing:
    """A metric of the offsets and each null with intervals, one colour per view."""
    first = next(iter(rows.values()))
    names = [name for name in ("field", *NULLS) if any(name in row.sources for row in rows.values())]
    figure = Drawing(figsize=(4.4, 3.1), facecolor="white", layout="constrained")
    ax = figure.subplots()
    for number, (view, row) in enumerate(rows.items()):
        shift = (number - (len(rows) - 1) / 2) * 0.28
        for place, name in enumerate(names):
            one = row.sources.get(name)
            if one is None or not math.isfinite(one.value):
                continue
            colour = VIEW_COLOURS[view] if name == "field" else FAINT
            ax.plot([one.low, one.high], [place + shift] * 2, color=colour, lw=2.4 if name == "field" else 1.2)
            face = colour if view == "whole" else "white"
            ax.plot(one.value, place + shift, "o", ms=6 if name == "field" else 4.5, color=colour, mfc=face)
    marks = [_mark(view) for view in rows]
    words = [VIEWS[view] for view in rows]
    figure.legend(marks, words, frameon=False, fontsize=9, loc="outside upper left", ncols=2, handletextpad=0)
    ax.set_yticks(range(len(names)), [NAMES[name] for name in names], fontsize=9)
    ax.get_yticklabels()[0].set_fontweight("bold")
    ax.invert_yaxis()
    measured_along(ax, textwrap.fill(first.metric.text, 36))
    return figure


@own_settings()
def mask_ap(rows: list[MaskRow]) -> Drawing:
    """AP of each source with its interval."""
    return _dots(rows, {row.source: row.values["ap"] for row in rows}, "AP of masks (%)")


@own_settings()
def mask_gains(rows: list[MaskRow], bar: str) -> Drawing:
    """AP of each other source over that of ``bar``, with its paired interval."""
    values = {row.source: row.gains[bar]["ap"] for row in rows if row.source not in (bar, BOXES)}
    return _dots([row for row in rows if row.source in values], values, f"AP over {BARS[bar]}", zero=True)


def _dots(rows: list[MaskRow], values: Mapping[str, Estimate], words: str, *, zero: bool = False) -> Drawing:
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
    measured_along(ax, words)
    return figure


def has_masks(analysis: Analysis) -> bool:
    """Whether :func:`masks_on_photo` has something to show."""
    found = analysis.detection
    return found is not None and "masks" in found and len(shown_detections(found, MIN_SCORE)) > 0


@own_settings()
def masks_on_photo(analysis: Analysis) -> Drawing:
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


def measured_along(ax: Axes, words: str) -> None:
    """Rows of values share a labelled horizontal axis with a light grid, and no frame."""
    ax.set_xlabel(words, fontsize=9)
    ax.tick_params(axis="x", labelsize=8)
    ax.grid(axis="x", color="#dddddd", lw=0.6)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _mark(view: str) -> Line2D:
    colour = VIEW_COLOURS[view]
    return Line2D([], [], marker="o", ls="", color=colour, mfc=colour if view == "whole" else "white")


@own_settings()
def data_url(figure: Drawing, kind: str = "png", dpi: int = 110) -> str:
    """A figure as data URL of a PNG, or of a JPEG (``jpeg``), which is smaller for photos."""
    buffer = io.BytesIO()
    options = {"quality": 88} if kind == "jpeg" else {"compress_level": 6}
    figure.savefig(buffer, format=kind, dpi=dpi, pil_kwargs=options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _axes(x: str, y: str) -> tuple[Drawing, Axes]:
    figure = Drawing(figsize=(5.2, 3.9), facecolor="white", layout="constrained")
    ax = figure.subplots()
    ax.set_xlabel(x, fontsize=9)
    ax.set_ylabel(y, fontsize=9)
    ax.tick_params(labelsize=8)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return figure, ax


def _title(ax: Axes, layer: str, detail: str) -> None:
    ax.set_title(f"{layer}\n{detail}", fontsize=9, loc="left", color=INK)


def _label(source: str) -> str:
    return "offsets" if source == "field" else source

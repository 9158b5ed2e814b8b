"""Colours, sizes and the layout of figures: panels of a photo's shape, each over a caption, and how they are saved."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files import whole_file
from ..photo import Photo, read

ARROW = "#d7191c"
TREND = "#ffd43b"
MASK = (0.90, 0.05, 0.10)
BOX = "#00b8d9"
PLACES = ("#ff3d00", "#00b0ff", "#ffd600", "#00e676", "#e040fb", "#ffffff")
INK, FAINT = "#1a1a1a", "#666666"
SIZE_MAP, MODULATION_MAP, SIGNED_MAP = "plasma", "viridis", "RdBu_r"
FORMATS = ("png", "svg", "pdf")

EM_INCHES, LINE_INCHES = 0.0086, 0.0185
"""Inches per point of type size: of an average character's width, and of a line's height."""
MOST_PER_INCH = 110
"""Photo px per inch of panel; up to twice as many are left as they are."""
LEAST_PANEL = 2.6
"""Inches that a panel is wide at least, so that its caption finds room below a very tall photo."""


@dataclass(frozen=True)
class Backdrop:
    """A photo as figures need it: no more px than they can show, and its own size, in which all is drawn."""

    pixels: np.ndarray
    """RGB uint8."""
    size: tuple[int, int]
    """Height and width of the photo, px."""

    @classmethod
    def of(cls, photo: Photo) -> Backdrop:
        """Read a photo, with all its px."""
        array = read(photo)
        return cls(array, (array.shape[0], array.shape[1]))

    def within(self, inches: float) -> Backdrop:
        """No more px than a panel so wide can show: drawing goes by their number, and most would be skipped."""
        from PIL import Image

        factor = int(self.pixels.shape[1] // (inches * MOST_PER_INCH))
        return self if factor < 2 else Backdrop(np.asarray(Image.fromarray(self.pixels).reduce(factor)), self.size)


class Picture(Figure):
    """A matplotlib figure that a notebook shows also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        held = io.BytesIO()
        self.savefig(held, format="png", dpi=110)
        return held.getvalue()


@dataclass(frozen=True)
class Sheet:
    """A figure and its panels ``[rows][columns]``."""

    figure: Figure
    panels: list[list[Axes]]
    inches: float
    """Width of a panel."""

    def flat(self) -> list[Axes]:
        """The panels, row by row."""
        return [ax for row in self.panels for ax in row]


def sheet(
    rows: int,
    columns: int,
    size: tuple[int, int],
    *,
    width: float | None = None,
    gap: float = 0.06,
    caption: float | None = None,
    foot: float = 0.0,
    title: str = "",
) -> Sheet:
    """Panels shaped like a photo of ``size`` (h, w), each above ``caption`` inches of text; ``foot`` inches below all.

    ``width`` is that of the whole figure, in inches; by default the panels get a size at which they can be read, in
    landscape and in portrait.
    """
    aspect = size[0] / size[1]
    margin, head = 0.08, 0.34 if title else 0.08
    panel = (4.2 if columns > 1 else 7.0) * min(1.0, 1.15 / aspect)
    if width is not None:
        panel = (width - 2 * margin - (columns - 1) * gap) / columns
    panel = max(panel, LEAST_PANEL if caption is None else LEAST_PANEL / columns)
    total = columns * panel + 2 * margin + (columns - 1) * gap
    if caption is None:  # narrow panels wrap their captions into more lines
        caption = 0.42 if panel > 4.5 else 0.62 if panel > 3.4 else 0.88
    tall = panel * aspect
    height = head + rows * (tall + caption) + (rows - 1) * gap + foot + 0.04
    figure = Picture(figsize=(total, height), facecolor="white")
    panels = []
    for row in range(rows):
        top = head + row * (tall + caption + gap)
        line = []
        for column in range(columns):
            left = margin + column * (panel + gap)
            box = (left / total, 1 - (top + tall) / height, panel / total, tall / height)
            line.append(figure.add_axes(box))
        panels.append(line)
    if title:
        figure.text(margin / total, 1 - 0.1 / height, title, va="top", ha="left", fontsize=10, color=INK, weight="bold")
    return Sheet(figure, panels, panel)


def caption(ax: Axes, text: str, detail: str = "", *, columns: int = 1, beside: float = 0.0) -> None:
    """Under a panel: what it shows, then in which units, each wrapped; ``beside`` inches at the right stay free.

    ``columns`` is the number of panels, from this one on, under which it may spread.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_position()
    wide, tall = columns * box.width * figure.get_figwidth(), box.height * figure.get_figheight()
    down = 0.05
    for words, points, color, room in ((text, 8, INK, wide - beside), (detail, 7, FAINT, wide)):
        for line in textwrap.wrap(words, max(12, int(room / (points * EM_INCHES)))):
            ax.text(
                0,
                -down / tall,
                line,
                transform=ax.transAxes,
                va="top",
                ha="left",
                fontsize=points,
                color=color,
                clip_on=False,
            )
            down += points * LINE_INCHES


def save(figure: Figure, path: Path | str, dpi: int = 150) -> Path:
    """Write a figure as PNG, SVG or PDF by its ending; the file appears whole or not at all.

    The same figure gives the same bytes: no date, fixed ids.
    """
    import matplotlib as mpl

    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    options: dict = {"dpi": dpi, "format": kind}
    if kind == "png":
        options |= {"pil_kwargs": {"compress_level": 1}, "metadata": {"Software": "deformscope"}}
    elif kind in ("svg", "pdf"):
        options["metadata"] = {"Date" if kind == "svg" else "CreationDate": None}
    fixed: dict[Any, Any] = {"svg.hashsalt": "deformscope", "svg.fonttype": "none", "pdf.fonttype": 42}
    with whole_file(path) as beside, mpl.rc_context(fixed):
        figure.savefig(beside, **options)
    return path

"""The layout of figures: panels with the photo's aspect ratio, with captions below."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .own_settings import own_settings
from .style import FAINT, INK
from .text import LINE, wrapped, write_line

TICKS = ("majorTicks", "minorTicks")
LEAST_PANEL = 2.6
"""Smallest width of a panel in inches, so that its caption fits below a very tall photo."""


class Picture(Figure):
    """A matplotlib figure that looks the same whatever the user's settings, also in a notebook without pyplot."""

    @own_settings()
    def draw(self, renderer: Any) -> None:
        """Draw the figure."""
        super().draw(renderer)

    @own_settings()
    def savefig(self, *arguments: Any, **settings: Any) -> None:
        """Save the figure, as in matplotlib."""
        super().savefig(*arguments, **settings)

    def _repr_png_(self) -> bytes:
        held = io.BytesIO()
        self.savefig(held, format="png", dpi=110)
        return held.getvalue()


class Panel(Axes):
    """Axes that make no ticks before they are drawn, which would take most of the time."""

    _made = False

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._made = True

    def _init_axis(self) -> None:
        super()._init_axis()  # type: ignore[misc]
        for axis in (self.xaxis, self.yaxis):
            # Axis would make its ticks to clip them.
            axis.set_clip_path = partial(Artist.set_clip_path, axis)  # type: ignore[method-assign]

    def grid(self, *arguments: Any, **settings: Any) -> None:
        """As of any axes."""
        with self._without_ticks():
            super().grid(*arguments, **settings)

    def tick_params(self, *arguments: Any, **settings: Any) -> None:
        """As of any axes."""
        with self._without_ticks():
            super().tick_params(*arguments, **settings)

    @contextmanager
    def _without_ticks(self) -> Iterator[None]:
        """While the axes are made: settings apply to ticks that are made later, so none is made for them."""
        lists = [] if self._made else [(axis, name) for axis in (self.xaxis, self.yaxis) for name in TICKS]
        for axis, name in lists:
            setattr(axis, name, [])
        yield
        for axis, name in lists:
            axis.__dict__.pop(name, None)


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
    """Panels with the aspect ratio of a photo of ``size`` (h, w), with ``caption`` inches of text below each, and
    ``foot`` below all.

    ``width`` is that of the whole figure, in inches; by default panels are large enough to read, landscape and
    portrait.
    """
    aspect = size[0] / size[1]
    margin, head = 0.08, 0.34 if title else 0.08
    panel = (4.2 if columns > 1 else 7.0) * min(1.0, 1.15 / aspect)
    if width is not None:
        panel = (width - 2 * margin - (columns - 1) * gap) / columns
    panel = max(panel, LEAST_PANEL if caption is None else LEAST_PANEL / columns)
    total = columns * panel + 2 * margin + (columns - 1) * gap
    if caption is None:  # captions of narrow panels have more lines
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
            line.append(figure.add_axes(box, axes_class=Panel))
        panels.append(line)
    if title:
        figure.text(margin / total, 1 - 0.1 / height, title, va="top", ha="left", fontsize=10, color=INK, weight="bold")
    return Sheet(figure, panels, panel)


def caption(ax: Axes, text: str, detail: str = "", *, columns: int = 1, beside: float = 0.0) -> None:
    """Write the caption of a panel: its content, then the units, each wrapped; ``beside`` inches at the right stay
    free.

    ``columns`` is the number of panels, from this one on, below which the caption may extend.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    wide = columns * ax.get_position().width * figure.get_figwidth()
    down = 0.05
    for words, points, color, room in ((text, 8, INK, wide - beside), (detail, 7, FAINT, wide)):
        for line in wrapped(words, points, room):
            write_line(ax, line, points, color, down)
            down += points * LINE / 72

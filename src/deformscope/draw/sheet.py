"""Figures as sheets of panels with the photo's aspect ratio and captions below, and their files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from ..errors import DeformscopeError
from ..files import whole_file
from .style import FAINT, INK, own_settings
from .text import LINE, drawable, families, wrapped, write_line

FORMATS = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
"""The kinds of files, with the metadata that would differ from run to run."""
MARGIN, TITLE_INCHES = 0.08, 0.34
LEAST_PANEL = 2.6
"""Smallest width of a panel in inches, so that its caption fits below a very tall photo."""
WIDEST = 0.4
"""Height over width of photos below which panels are wider, up to MOST_WIDE inches."""
MOST_WIDE, MOST_TALL = 13.0, 14.0
"""Inches, of a panel and of all rows; a photo too tall for that is drawn narrower than its panel."""


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


@dataclass
class Sheet:
    """A figure and its panels ``[rows][columns]``."""

    figure: Figure
    panels: list[list[Axes]]
    inches: float
    """Width of a panel."""
    tall: float
    """Height of a panel, inches."""
    title: Text | None = None
    gap: float = 0.06
    room: float = 0.0
    """Height of the tallest caption so far, inches."""

    def flat(self) -> list[Axes]:
        """The panels, row by row."""
        return [ax for row in self.panels for ax in row]

    def caption(self, ax: Axes, text: str, detail: str = "", *, columns: int = 1, reserved: float = 0.0) -> float:
        """Write the caption of a panel: its content, then the units, each wrapped; returns its height in inches.

        It may extend below ``columns`` panels, from this one on; ``reserved`` inches at the right stay free.
        """
        whole = ax.get_anchor() == "NW"  # captions of very tall photos are wider than they are
        wide = columns * ax.get_position(original=whole).width * self.figure.get_figwidth()
        down = 0.05
        for words, points, color, room in ((text, 8, INK, wide - reserved), (detail, 7, FAINT, wide)):
            for line in wrapped(words, points, room):
                write_line(ax, line, points, color, down)
                down += points * LINE / 72
        self.room = max(self.room, down)
        return down

    def finished(self) -> Figure:
        """The figure, as high as its captions need."""
        self.fit(self.room)
        return self.figure

    def fit(self, caption: float, foot: float = 0.0) -> None:
        """Set the figure's height for ``caption`` inches below every panel and ``foot`` below all."""
        head = MARGIN if self.title is None else TITLE_INCHES
        rows, total = len(self.panels), float(self.figure.get_figwidth())
        height = head + rows * (self.tall + caption) + (rows - 1) * self.gap + foot + 0.04
        self.figure.set_figheight(height)
        for row, line in enumerate(self.panels):
            top = head + row * (self.tall + caption + self.gap)
            for column, ax in enumerate(line):
                left = MARGIN + column * (self.inches + self.gap)
                ax.set_position((left / total, 1 - (top + self.tall) / height, self.inches / total, self.tall / height))
        if self.title is not None:
            self.title.set_position((MARGIN / total, 1 - 0.1 / height))


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
    portrait. :meth:`Sheet.fit` adapts the room for captions once it is known.
    """
    # A file name may have letters that no font has; it is left out of the title.
    title = " · ".join(filter(None, map(drawable, title.split(" · "))))
    aspect = size[0] / size[1]
    panel = (4.2 if columns > 1 else min(MOST_WIDE, 7.0 * max(1.0, WIDEST / aspect))) * min(1.0, 1.15 / aspect)
    if width is not None:
        panel = (width - 2 * MARGIN - (columns - 1) * gap) / columns
    panel = max(panel, LEAST_PANEL if caption is None else LEAST_PANEL / columns)
    if caption is None:  # captions of narrow panels have more lines
        caption = 0.42 if panel > 4.5 else 0.62 if panel > 3.4 else 0.88
    total = columns * panel + 2 * MARGIN + (columns - 1) * gap
    figure = Picture(figsize=(total, total), facecolor="white")
    panels = [[figure.add_axes((0, 0, 1, 1)) for _ in range(columns)] for _ in range(rows)]
    above = None
    if title:
        fonts = list(families(title))
        # Other fonts often have one weight; matplotlib would warn on stderr.
        weight = "bold" if len(fonts) == 1 else "normal"
        style: dict[str, Any] = {"fontsize": 10, "color": INK, "weight": weight, "fontfamily": fonts}
        above = figure.text(0, 1, title, va="top", ha="left", parse_math=False, **style)
    tall = min(panel * aspect, max(MOST_TALL / rows, 2.5 * panel))
    for ax in [ax for row in panels for ax in row] if tall < panel * aspect else ():
        ax.set_anchor("NW")
    result = Sheet(figure, panels, panel, tall, above, gap)
    result.fit(caption, foot)
    return result


def row_of_panels(count: int, size: tuple[int, int]) -> Sheet:
    """Panels in even rows: at most four portrait photos per row, three landscape ones, or one of the widest."""
    rows = -(-count // (4 if size[0] > size[1] else 3 if size[0] > WIDEST * size[1] else 1))
    columns = -(-count // rows)
    result = sheet(rows, columns, size)
    for ax in result.flat()[count:]:
        ax.set_axis_off()
    return result


@own_settings()
def save(figure: Figure, path: Path | str, dpi: int = 150) -> Path:
    """Save a figure as PNG, SVG or PDF, by its extension; the file appears whole or not at all.

    The same figure gives the same bytes: no date, fixed ids. Raises DeformscopeError for other extensions, and if the
    file cannot be written.

    Example:
        >>> ds.draw.save(ds.draw.figure2(field, "photo.jpg"), "figure2.svg").name
        'figure2.svg'
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise DeformscopeError(f"path={str(path)!r}: expected a name ending in one of .{', .'.join(FORMATS)}")
    # Pillow's default compression takes most of the time and saves a tenth of the bytes.
    fast: dict[str, Any] = {"pil_kwargs": {"compress_level": 1}} if kind == "png" else {}
    with whole_file(path) as temporary:
        metadata = {FORMATS[kind]: "deformscope" if kind == "png" else None}
        figure.savefig(temporary, format=kind, dpi=dpi, metadata=metadata, **fast)
    return path

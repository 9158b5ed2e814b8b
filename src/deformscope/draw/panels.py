"""The panels of the paper's figures, on given axes over a photo; factors default to readable ones."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..backdrop import Backdrop
from . import primitives, style
from .arrows import Arrows
from .primitives import nice
from .view import FieldView

WASH = 0.3
MOSAIC_GAP = 0.036
"""Gap between the photos of a mosaic, relative to their width."""
SCALE_INCHES = 1.35
"""Room for the scale arrow at the right of the first line of a caption."""


def point_panel(ax: Axes, backdrop: Backdrop, view: FieldView, k: int, factor: float, trend: float) -> None:
    """A panel of Figure 1: the offsets Δp_k of kernel point ``k`` (× factor) and their mean (× trend) in the middle."""
    height, width = backdrop.size
    primitives.photo(ax, backdrop.washed(WASH), size=backdrop.size)
    _point_arrows(ax, view, k, factor, trend, backdrop.size)
    _frame(ax, height, width)
    rows, columns = view.field.kernel_size
    place = f"({k // columns - (rows - 1) / 2:+g}, {k % columns - (columns - 1) / 2:+g})".replace("-", "−")
    text = ax.text(0.02, 0.97, f"k={k}  {place}", transform=ax.transAxes, va="top", fontsize=7, color="black")
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def kernel_mosaic(ax: Axes, backdrop: Backdrop, view: FieldView, factor: float, trend: float) -> None:
    """Figure 1 in small: all kernel points on the same axes, each over its own copy of the photo, arranged as the
    kernel."""
    height, width = backdrop.size
    rows, columns = view.field.kernel_size
    tile = backdrop.washed(WASH)
    gap = max(1, round(MOSAIC_GAP * tile.shape[1]))
    framed = np.pad(tile, ((0, gap), (0, gap), (0, 0)), constant_values=255)
    tiled = np.tile(framed, (rows, columns, 1))[:-gap, :-gap]
    across = width / tile.shape[1]
    down = height / tile.shape[0]
    primitives.photo(ax, tiled, size=(round(tiled.shape[0] * down), round(tiled.shape[1] * across)))
    for k in range(rows * columns):
        row, column = divmod(k, columns)
        corner = (row * (tile.shape[0] + gap) * down, column * (tile.shape[1] + gap) * across)
        frame = Rectangle(corner[::-1], width, height, transform=ax.transData)
        for artist in _point_arrows(ax, view, k, factor, trend, backdrop.size, corner, small=True):
            artist.set_clip_path(frame)


def _point_arrows(
    ax: Axes,
    view: FieldView,
    k: int,
    factor: float,
    trend: float,
    size: tuple[int, int],
    corner: tuple[float, float] = (0.0, 0.0),
    *,
    small: bool = False,
) -> list[Arrows]:
    shown = view.on_photo(size)
    thin = primitives.arrows(
        ax, view.starts[k][shown] + corner, view.vectors[k][shown] * factor, width=0.4 if small else 0.7, halo=False
    )
    mean = view.vectors[k][shown].mean(axis=0) * trend
    middle = np.array([[size[0] / 2, size[1] / 2]]) - mean / 2 + corner
    thick = primitives.arrows(ax, middle, mean[None], color=style.TREND, width=1.8 if small else 4.0, halo=False)
    thick.set(path_effects=[withStroke(linewidth=0.8 if small else 1.8, foreground="black")], zorder=5)
    return [thin, thick]


def feature_panel(
    ax: Axes, backdrop: Backdrop, view: FieldView, factor: float | None = None, *, limit: float | None = None
) -> float:
    """A panel of Figure 2: d_f (× factor) as arrows and the negative divergence as a red mask; returns the factor."""
    height, width = backdrop.size
    primitives.photo(ax, backdrop.washed(WASH * 0.6), size=backdrop.size)
    shown = view.on_photo((height, width))
    scale = factor or view.factor(np.linalg.norm(view.d_f[shown], axis=1), 1.6)
    full = limit or primitives.convergence_limit(view.div)
    primitives.divergence_mask(ax, view.div, view.corners, limit=full or None)
    primitives.arrows(ax, view.centres[shown], view.d_f[shown] * scale, color="#10243e", width=0.9)
    _frame(ax, height, width)
    return scale


def kernel_panel(ax: Axes, backdrop: Backdrop, view: FieldView, factor: float | None = None) -> float:
    """A panel of Figure 3: a circle with radius r = sqrt(width · height) of d_k, × factor, at every cell; returns the
    factor."""
    height, width = backdrop.size
    primitives.photo(ax, backdrop.washed(WASH), size=backdrop.size)
    shown = view.on_photo((height, width))
    # Attention, which has no regular grid, looks far beyond the cells of a fine map from everywhere: circles that
    # overlap as a kernel's do would hide the photo.
    scale = factor or view.factor(np.abs(view.radii[shown]), 1.3 if any(view.field.dilation) else 0.6)
    primitives.circles(ax, view.centres[shown], view.radii[shown] * scale, values=view.radii[shown])
    _frame(ax, height, width)
    return scale


def reach(view: FieldView, size: tuple[int, int]) -> str:
    """How large the circles of Figure 3 are, and what the green ones stand for."""
    spread, together = view.reach(size)
    words = f"r up to {spread:.3g} px" if spread or not together else "no kernel is spread"
    return words + (f"; green: drawn together, |r| up to {together:.3g} px" if together else "")


def scale_arrow(ax: Axes, view: FieldView, factor: float) -> None:
    """The scale at the right below the panel: the length at which this many cells are drawn."""
    height, width = view_size(ax)
    cell = float(np.mean(view.field.pixels_per_cell())) * factor
    figure = ax.get_figure(root=True)
    assert figure is not None
    inches = ax.get_position().height * figure.get_figheight()
    across = ax.get_position().width * figure.get_figwidth()
    if ax.get_anchor() == "NW":  # of a very tall photo; it would cross the caption
        return
    # The longest readable number of cells that leaves room for its label.
    count = nice(0.45 * width / across / cell)
    level = height * (1 + 0.115 / inches)
    arrow = primitives.arrows(
        ax, np.array([[level, width - count * cell]]), np.array([[0, count * cell]]), color=style.INK, halo=False
    )
    arrow.set_clip_on(False)
    ax.text(
        width - count * cell - 0.01 * width,
        level,
        f"{count:g} cell{'s' if count > 1 else ''}",
        ha="right",
        va="center",
        fontsize=7,
        color=style.INK,
        clip_on=False,
    )


def view_size(ax: Axes) -> tuple[float, float]:
    """Height and width of the axes' data range, px."""
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    return abs(bottom - top), abs(right - left)


def _frame(ax: Axes, height: int, width: int) -> None:
    ax.set(xlim=(0, width), ylim=(height, 0))

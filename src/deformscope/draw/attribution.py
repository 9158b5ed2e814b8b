"""Parts of explanations on given axes: sampling points by attribution, receptive fields as contours. Photo px."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..backdrop import Backdrop
from ..explain.attention import AttentionAttribution
from ..explain.explanation import Attribution, Explanation
from ..explain.receptive_field import ReceptiveField
from . import primitives, style
from .query_view import QueryView
from .text import FAMILY, drawable, families
from .window import Window

SHARES = (0.5, 0.95)
"""Shares of a receptive field's mass within its two contours."""
INNER, OUTER = "#e53900", "#7a1fa2"
LEAST_SHARE = 0.03
"""Points below this share of the strongest are not drawn; there may be hundreds of cells of them."""
LARGEST = 26.0
"""Ratio of a panel's longer side to the diameter of the strongest point."""
WASH = 0.35


def attributions(ax: Axes, backdrop: Backdrop, layer: Attribution, window: Window, *, grid: bool = False) -> int:
    """Draw the sampling points of a layer by their attribution; returns the number of points drawn.

    ``grid`` adds lines from the regular grid for the cell with the strongest points.
    """
    primitives.photo(ax, backdrop.washed(WASH), size=backdrop.size)
    values, places = layer.points.numpy(), layer.places().numpy()
    largest = float(np.abs(values).max(initial=0.0))
    shown = (np.abs(values) >= LEAST_SHARE * largest) & (values != 0) & np.isfinite(places).all(axis=-1)
    if grid:
        row, column = layer.strongest_cell()
        shown[:, :, row, column] = np.isfinite(places[:, :, row, column]).all(axis=-1)
        regular = layer.field.to_pixels(layer.field.regular_points()[:, row, column]).numpy()
        for group in places[:, :, row, column]:
            primitives.lines(ax, regular, group, color="#222222", width=0.8)
        _plus(ax, regular.mean(axis=0))
    signed_points(ax, places[shown], values[shown], max(window.height, window.width) / LARGEST)
    window.apply(ax)
    return int(shown.sum())


def query_attributions(
    ax: Axes, backdrop: Backdrop, layer: AttentionAttribution, window: Window, query: int | None
) -> tuple[int, int]:
    """Draw the sampling points of one query (None: of all) by their attribution, and the query's reference.

    Returns the numbers of points drawn and of all that could be.
    """
    primitives.photo(ax, backdrop.washed(WASH), size=backdrop.size)
    chosen = slice(None) if query is None else slice(query, query + 1)
    values, places = layer.points[chosen].numpy(), layer.places()[chosen].numpy()
    shown = (np.abs(values) >= LEAST_SHARE * np.abs(values).max(initial=0.0)) & (values != 0)
    shown &= np.isfinite(places).all(axis=-1)
    if query is not None:
        view = QueryView.of(layer.field, query)
        if view.box is not None:
            (top, left), (high, wide) = view.box[:2], view.box[2:] - view.box[:2]
            edge: dict[str, Any] = {"edgecolor": "#222222", "linewidth": 0.9, "linestyle": "--"}
            ax.add_patch(Rectangle((left, top), wide, high, fill=False, zorder=3, **edge))
        _plus(ax, view.reference)
    signed_points(ax, places[shown], values[shown], max(window.height, window.width) / LARGEST)
    window.apply(ax)
    return int(shown.sum()), int(shown.size)


def signed_points(ax: Axes, places: primitives.Points, values: np.ndarray, largest: float) -> EllipseCollection:
    """Dots, red for positive and blue for negative ``values``, with areas by magnitude; the strongest on top.

    ``largest`` is the diameter of the strongest, px.
    """
    order = np.argsort(np.abs(values))
    share = np.abs(values[order]) / max(float(np.abs(values).max(initial=0.0)), 1e-12)
    diameters = largest * np.sqrt(share.clip(0.02))
    artist = EllipseCollection(
        diameters,
        diameters,
        np.zeros(len(order)),
        units="xy",
        offsets=places[order][:, ::-1],
        offset_transform=ax.transData,
        linewidths=0.3,
        edgecolors=(0, 0, 0, 0.5),
        cmap=style.SIGNED_MAP,
        zorder=4,
    )
    # The sign must be visible on weak dots too: they are smaller, but hardly paler.
    artist.set(array=np.sign(values[order]) * (0.5 + 0.5 * share), clim=(-1.15, 1.15), alpha=0.92)
    ax.add_collection(artist, autolim=False)
    return artist


def contours(ax: Axes, field: ReceptiveField) -> QuadContourSet | None:
    """Contours around 50 and 95 % of a receptive field's mass, smoothed, and a dot at its centre. None without mass."""
    from scipy.ndimage import gaussian_filter

    heat = field.heatmap()
    if not np.isfinite(heat).all():
        return None
    height, width = heat.shape
    step = max(1, max(height, width) // 512)  # enough for a contour of a large photo
    heat = heat[step // 2 :: step, step // 2 :: step]
    smooth = gaussian_filter(heat, max(heat.shape) / 50)
    inner, outer = (field.level(share, smooth) for share in SHARES)
    y, x = (np.arange(size) * step + step // 2 + 0.5 for size in smooth.shape)
    artist = None
    if outer < inner < smooth.max():
        ax.contourf(x, y, smooth, [inner, 2 * float(smooth.max())], colors=[INNER], alpha=0.3, zorder=2)
        artist = ax.contour(x, y, smooth, [outer, inner], colors=[OUTER, INNER], linewidths=[0.9, 1.8], zorder=3)
    cy, cx = field.centre
    mark = ax.plot(cx, cy, marker="o", color=INNER, ms=5, mec="white", mew=1.0, zorder=5)[0]
    mark.set_path_effects([withStroke(linewidth=1.5, foreground="black")])
    return artist


def outline(ax: Axes, explained: Explanation, window: Window) -> None:
    """The explained box, with its class and score where they cover none of its points."""
    if explained.box is None:
        return
    primitives.boxes(ax, explained.detection, min_score=0.0, labels=False)
    x0, y0, x1, _ = explained.box
    score = f" {float(explained.detection['scores'][0]):.2f}" if "scores" in explained.detection else ""
    above = y0 - window.top > 0.07 * window.height
    right = x0 > window.left + 0.7 * window.width
    ax.annotate(
        drawable(explained.label, instead="object") + score,
        (min(x1, window.left + window.width) if right else max(x0, window.left), max(y0, window.top)),
        xytext=(-1.5 if right else 1.5, 2.5 if above else -2.5),
        textcoords="offset points",
        fontsize=7,
        color="white",
        ha="right" if right else "left",
        va="bottom" if above else "top",
        bbox={"facecolor": style.BOX, "edgecolor": "none", "pad": 1.2},
        fontfamily=list(families(drawable(explained.label))) or FAMILY,
        parse_math=False,
        zorder=3.4,  # below the points
    )


def _plus(ax: Axes, place: np.ndarray) -> None:
    """From where points were moved (y, x)."""
    mark = ax.plot(place[1], place[0], marker="+", color="white", ms=8, mew=1.4, zorder=3.6)[0]
    mark.set_path_effects([withStroke(linewidth=3.0, foreground="black")])

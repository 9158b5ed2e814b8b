"""Parts of figures. Each draws on given axes, in photo px, and returns its artist; points are (y, x)."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.colors import to_rgba
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke

from ..backdrop import washed
from . import style
from .arrows import Arrows
from .detections import boxes as boxes  # noqa: PLC0414
from .photo_image import PhotoImage
from .text import escaped as escaped  # noqa: PLC0414

Points = np.ndarray
"""[m 2], (y, x) in photo px."""


def photo(ax: Axes, array: np.ndarray, wash: float = 0.0, size: tuple[int, int] | None = None) -> AxesImage:
    """Draw the photo on the whole axes, blended with white by ``wash`` (0..1), so that things drawn on it can be seen.

    ``size`` (h, w) is that of the photo, if ``array`` is a smaller copy of it.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> image = ds.draw.photo(ax, photo, wash=0.3)      # RGB uint8 [h w 3]
    """
    height, width = size or array.shape[:2]
    image = PhotoImage(ax, washed(array, wash), (height, width), zorder=0)
    ax.set_aspect("equal")
    ax.add_image(image)
    image.set_clip_path(ax.patch)
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    return image


def arrows(
    ax: Axes, starts: Points, vectors: Points, *, color: str = style.ARROW, width: float = 1.1, halo: bool = True
) -> Arrows:
    """Arrows of true length, from each start to start + vector, (y, x) px. ``width`` is that of the shaft, in
    points.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> starts, vectors = np.array([[50.0, 80.0], [150.0, 200.0]]), np.array([[20.0, 0.0], [0.0, 40.0]])
        >>> artist = ds.draw.arrows(ax, starts, vectors)    # down, and to the right
    """
    artist = Arrows(
        ax,
        starts[:, 1],
        starts[:, 0],
        vectors[:, 1],
        vectors[:, 0],
        angles="xy",
        scale_units="xy",
        scale=1,
        units="inches",
        width=width / 72,
        headwidth=3.6,
        headlength=4.2,
        headaxislength=3.8,
        minlength=0.6,
        color=color,
        zorder=3,
    )
    ax.add_collection(artist, autolim=False)
    if halo:
        artist.set_path_effects([withStroke(linewidth=width * 0.9, foreground=(1, 1, 1, 0.75))])
    return artist


def divergence_mask(
    ax: Axes, div: np.ndarray, corners: tuple[float, float, float, float], *, limit: float | None = None
) -> AxesImage:
    """A red mask where the divergence ``[h w]`` is negative, stronger where it is more negative.

    ``corners`` are the (top, bottom, left, right) edges of the map, px. ``limit`` is the convergence, in 1/cell, at
    which the mask is strongest; by default the 98th percentile of this map's.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> div = ds.divergence(ds.split(field.offset)[0])[0, 0, 0].numpy()
        >>> artist = ds.draw.divergence_mask(ax, div, (0, 300, 0, 451))
    """
    strength = np.clip(-div, 0, None)
    full = limit or max(convergence_limit(div), 1e-9)
    veil = np.zeros((*div.shape, 4), dtype=np.float32)
    veil[..., :3] = style.MASK
    veil[..., 3] = 0.75 * np.clip(strength / full, 0, 1) ** 0.7
    # Extended by a cell on each side, since the centres of cells begin at the photo's corner.
    veil = np.pad(veil, ((1, 1), (1, 1), (0, 0)), mode="edge")
    top, bottom, left, right = corners
    down, across = (bottom - top) / div.shape[0], (right - left) / div.shape[1]
    top, bottom, left, right = top - down, bottom + down, left - across, right + across
    axis = ax.axis()
    image = ax.imshow(veil, extent=(left, right, bottom, top), interpolation="bilinear", zorder=1)
    ax.axis(axis)
    return image


def convergence_limit(div: np.ndarray) -> float:
    """The 98th percentile of −div over cells where it is positive; 0 without such cells."""
    inward = -div[div < 0]
    return float(np.percentile(inward, 98)) if inward.size else 0.0


def circles(
    ax: Axes, centres: Points, radii: np.ndarray, *, values: np.ndarray | None = None, width: float = 0.9
) -> EllipseCollection:
    """Circles of ``|radii|`` px; coloured by ``values``, by default their radii. Larger ones lie on top.

    Negative radii stand for kernels that are drawn together (:meth:`FieldView.of`); theirs are green.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> artist = ds.draw.circles(ax, np.array([[50.0, 80.0], [150.0, 200.0]]), np.array([12.0, 30.0]))
    """
    order = np.argsort(np.abs(radii))
    order = order[np.isfinite(radii[order])]
    radii, shown = radii[order], (radii if values is None else values)[order]
    diameters = 2 * np.abs(radii)
    largest = float(shown.max(initial=0.0))
    colors = colormaps[style.SIZE_MAP](np.clip(shown / largest, 0, 1) if largest > 0 else np.zeros(len(shown)))
    colors[radii < 0] = to_rgba(style.TOGETHER)
    artist = EllipseCollection(
        diameters,
        diameters,
        np.zeros(len(order)),
        units="xy",
        offsets=centres[order][:, ::-1],
        offset_transform=ax.transData,
        facecolors="none",
        edgecolors=colors,
        linewidths=width,
        zorder=3,
    )
    ax.add_collection(artist, autolim=False)
    return artist


def points(
    ax: Axes,
    places: Points,
    diameter: float,
    *,
    color: str | None = None,
    values: np.ndarray | None = None,
    limit: float = 1.0,
) -> EllipseCollection:
    """Dots of ``diameter`` px, of one colour or coloured by ``values`` (the modulation) from 0 to ``limit``.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> artist = ds.draw.points(ax, np.array([[50.0, 80.0], [150.0, 200.0]]), diameter=6)
    """
    artist = EllipseCollection(
        np.full(len(places), diameter),
        np.full(len(places), diameter),
        np.zeros(len(places)),
        units="xy",
        offsets=places[:, ::-1],
        offset_transform=ax.transData,
        linewidths=0.4,
        edgecolors=(0, 0, 0, 0.55),
        zorder=4,
    )
    if values is None:
        artist.set_facecolor(color or style.PLACES[0])
    else:
        artist.set(cmap=style.MODULATION_MAP, array=values, clim=(0, limit))
    ax.add_collection(artist, autolim=False)
    return artist


def lines(ax: Axes, starts: Points, ends: Points, *, color: str = "white", width: float = 0.7) -> LineCollection:
    """Straight lines between paired points."""
    pairs = np.stack([starts[:, ::-1], ends[:, ::-1]], axis=1)
    artist = LineCollection(list(pairs), colors=color, linewidths=width, zorder=3.5)
    artist.set_path_effects([withStroke(linewidth=width * 2.2, foreground=(0, 0, 0, 0.45))])
    ax.add_collection(artist, autolim=False)
    return artist


def nice(value: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda m: abs(math.log(m / value)))

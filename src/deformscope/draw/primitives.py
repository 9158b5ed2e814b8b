"""Parts of figures. Each draws on given axes, in photo px, and returns its artist; points are (y, x)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.image import AxesImage
from matplotlib.patheffects import Normal, Stroke, withStroke
from matplotlib.quiver import Quiver
from torch import Tensor

from ..backdrop import Backdrop, washed
from . import style
from .text import ASCENT, FAMILY, LINE, drawable, escaped, families, width as text_width

MOST_BOXES = 5
SAME_PLACE = 0.5
"""IoU from which two boxes stand for the same place, whatever their classes."""
LABEL_POINTS, LABEL_MARGIN = 7, 2.5
"""Font size of a label and the room around it, points."""

Points = np.ndarray
"""[m 2], (y, x) in photo px."""


def photo(ax: Axes, array: np.ndarray | Backdrop, wash: float = 0.0, size: tuple[int, int] | None = None) -> AxesImage:
    """Draw the photo on the whole axes, blended with white by ``wash`` (0..1), so that things drawn on it are visible.

    ``size`` (h, w) is that of the photo, if ``array`` is a smaller copy of it.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> image = ds.draw.photo(ax, photo, wash=0.3)      # RGB uint8 [h w 3]
    """
    pixels, known = (array.pixels, array.size) if isinstance(array, Backdrop) else (array, array.shape[:2])
    height, width = size or known
    # Nearest px, since resampling takes ten times as long.
    image = ax.imshow(
        washed(pixels, wash),
        extent=(0, width, height, 0),
        origin="upper",
        interpolation="nearest",
        aspect="equal",
        zorder=0,
    )
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    return image


def arrows(
    ax: Axes, starts: Points, vectors: Points, *, color: str = style.ARROW, width: float = 1.1, halo: bool = True
) -> Quiver:
    """Arrows of true length, from each start to start + vector, (y, x) px; the shaft is ``width`` points wide.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> starts, vectors = np.array([[50.0, 80.0], [150.0, 200.0]]), np.array([[20.0, 0.0], [0.0, 40.0]])
        >>> artist = ds.draw.arrows(ax, starts, vectors)    # down, and to the right
    """
    shape: dict[str, Any] = {"headwidth": 3.6, "headlength": 4.2, "headaxislength": 3.8, "minlength": 0.6}
    units: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": width / 72}
    (y, x), (v, u) = starts.T, vectors.T
    artist = Quiver(ax, x, y, u, v, color=color, zorder=3, **units, **shape)
    ax.add_collection(artist, autolim=False)
    if halo:  # of all arrows below all of them
        artist.set_path_effects([Stroke(linewidth=width * 0.9, foreground=(1, 1, 1, 0.75)), Normal()])
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
    """Circles of ``|radii|`` px; coloured by ``values``, by default their radii. Larger ones are on top.

    Negative radii stand for kernels that are contracted (:meth:`FieldView.of`); theirs are green.

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> artist = ds.draw.circles(ax, np.array([[50.0, 80.0], [150.0, 200.0]]), np.array([12.0, 30.0]))
    """
    order = np.argsort(np.abs(radii))
    order = order[np.isfinite(radii[order])]
    radii, shown = radii[order], (radii if values is None else values)[order]
    largest = float(shown.max(initial=0.0))
    colors = colormaps[style.SIZE_MAP](np.clip(shown / largest, 0, 1) if largest > 0 else np.zeros(len(shown)))
    colors[radii < 0] = to_rgba(style.TOGETHER)
    return discs(
        ax, centres[order], 2 * np.abs(radii), facecolors="none", edgecolors=colors, linewidths=width, zorder=3
    )


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
    artist = discs(ax, places, np.full(len(places), diameter), linewidths=0.4, edgecolors=(0, 0, 0, 0.55))
    if values is None:
        artist.set_facecolor(color or style.PLACES[0])
    else:
        artist.set(cmap=style.MODULATION_MAP, array=values, clim=(0, limit))
    return artist


def discs(ax: Axes, places: Points, diameters: np.ndarray, *, zorder: float = 4, **settings: Any) -> EllipseCollection:
    """Discs of given diameters, px."""
    artist = EllipseCollection(
        diameters,
        diameters,
        np.zeros(len(places)),
        units="xy",
        offsets=places[:, ::-1],
        offset_transform=ax.transData,
        zorder=zorder,
        **settings,
    )
    ax.add_collection(artist, autolim=False)
    return artist


def plus(ax: Axes, place: np.ndarray, size: float, zorder: float) -> None:
    """A white + of ``size`` points at a place (y, x), with a dark edge."""
    mark = ax.plot(place[1], place[0], marker="+", color="white", ms=size, mew=1.4, zorder=zorder)[0]
    mark.set_path_effects([withStroke(linewidth=3.0, foreground="black")])


def lines(ax: Axes, starts: Points, ends: Points, *, color: str = "white", width: float = 0.7) -> LineCollection:
    """Straight lines between paired points."""
    pairs = np.stack([starts[:, ::-1], ends[:, ::-1]], axis=1)
    artist = LineCollection(list(pairs), colors=color, linewidths=width, zorder=3.5)
    artist.set_path_effects([withStroke(linewidth=width * 2.2, foreground=(0, 0, 0, 0.45))])
    ax.add_collection(artist, autolim=False)
    return artist


def shown_detections(
    detection: dict[str, Tensor], min_score: float, most: int = MOST_BOXES, same_place: float = SAME_PLACE
) -> Tensor:
    """The indices of the detections to draw, best first: class-agnostic suppression leaves one box per place.

    Otherwise a detector that gives one animal boxes of three classes would hide it. Without scores all count equally.
    """
    from torchvision.ops import nms

    boxes = detection.get("boxes")
    if boxes is None or not len(boxes):
        return torch.zeros(0, dtype=torch.long)
    scores = detection.get("scores", torch.ones(len(boxes)))
    usable = (boxes.isfinite().all(dim=1) & (scores >= min_score)).nonzero().flatten()
    return usable[nms(boxes[usable].float(), scores[usable].float(), same_place)][:most]


def boxes(
    ax: Axes,
    detection: dict[str, Tensor],
    class_names: Sequence[str] = (),
    *,
    min_score: float = 0.5,
    labels: bool = True,
    most: int = MOST_BOXES,
    same_place: float = SAME_PLACE,
) -> PolyCollection:
    """Outlines of the best ``most`` detections (xyxy px) that score at least ``min_score``, with class and score.

    Of boxes whose IoU exceeds ``same_place`` only the best is drawn, whatever their classes (1: all of them).

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> artists = ds.draw.boxes(ax, detector("photo.jpg")[0], detector.class_names, min_score=0.4)
    """
    index = shown_detections(detection, min_score, most, same_place).cpu()
    corners = np.asarray(detection["boxes"].cpu()[index], dtype=float) if len(index) else np.zeros((0, 4))
    outlines = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in corners]
    artist = PolyCollection(outlines, facecolors="none", edgecolors=style.BOX, linewidths=1.4, zorder=4)
    artist.set_path_effects([withStroke(linewidth=2.6, foreground=(1, 1, 1, 0.8))])
    ax.add_collection(artist, autolim=False)
    if labels and "labels" in detection:
        scores = detection["scores"].cpu()[index].tolist() if "scores" in detection else [None] * len(corners)
        taken: list[tuple[float, float, float, float]] = []
        for box, label, score in zip(corners, detection["labels"].cpu()[index].tolist(), scores, strict=True):
            name = class_names[label] if 0 <= label < len(class_names) else ""
            words = drawable(name) or str(label)
            _label(ax, box, words if score is None else f"{words} {score:.2f}", taken)
    return artist


def _label(ax: Axes, box: np.ndarray, text: str, taken: list[tuple[float, float, float, float]]) -> None:
    """Write a label at a box's upper left corner: inside the axes, and below the labels that it would cover.

    ``taken`` are the left, right, bottom and top of those, points.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    to_points = 72 / figure.dpi
    corner = max(box[0], 0.0), max(box[1], 0.0)
    left, top = ax.transData.transform(corner) * to_points
    across, tall = text_width(escaped(text), LABEL_POINTS) * 72 + 2 * LABEL_MARGIN, LINE * LABEL_POINTS + 2
    right_edge, bottom_edge = ax.bbox.x1 * to_points, ax.bbox.y0 * to_points
    begin = max(min(left, right_edge - across), ax.bbox.x0 * to_points)
    lines = 0
    while top - (lines + 1) * tall > bottom_edge and any(
        begin < right and low < begin + across and bottom < top - lines * tall and top - (lines + 1) * tall < high
        for low, right, bottom, high in taken
    ):
        lines += 1
    taken.append((begin, begin + across, top - (lines + 1) * tall, top - lines * tall))
    ax.annotate(
        text,
        corner,
        xytext=(begin - left + LABEL_MARGIN, -lines * tall - LABEL_MARGIN - ASCENT * LABEL_POINTS),
        textcoords="offset points",
        fontsize=LABEL_POINTS,
        color="white",
        va="baseline",
        fontfamily=list(families(text)) or FAMILY,
        bbox={"facecolor": style.BOX, "edgecolor": "none", "pad": 1.2},
        zorder=5,
        annotation_clip=True,
        parse_math=False,
    )


def inches(ax: Axes) -> tuple[float, float]:
    """Height and width of the axes, inches."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    place = ax.get_position()
    return place.height * figure.get_figheight(), place.width * figure.get_figwidth()


def nice(value: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return min((m * power for m in (1, 2, 5, 10)), key=lambda m: abs(math.log(m / value)))

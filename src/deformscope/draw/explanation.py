"""Figures of explanations: sampling points by attribution, a panel per layer, and the effective receptive field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from ..attribution.attention import AttentionAttribution
from ..attribution.explanation import Attribution, Explanation
from ..attribution.receptive_field import ReceptiveField
from ..attribution.targets import SIDES
from ..backdrop import Backdrop, on_photo
from ..errors import DeformscopeError
from ..fields.places import Placement
from ..photo import Photo
from . import primitives, style
from .panels import Window
from .queries import QueryView
from .sheet import Sheet, row_of_panels
from .style import own_settings
from .text import FAMILY, drawable, families

MOST_LAYERS = 3
"""Number of panels of layers; if the output depends on more, the last of each reduction is shown, and a decoder's last.
"""
SHARES = (0.5, 0.95)
"""Shares of a receptive field's mass within its two contours."""
INNER, OUTER = "#e53900", "#7a1fa2"
LEAST_SHARE = 0.03
"""Points below this share of the strongest are not drawn: most points of most cells."""
LARGEST = 26.0
"""Ratio of a panel's longer side to the diameter of the strongest point."""
WASH = 0.35


@own_settings()
def explanation(
    explained: Explanation,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    layers: Sequence[str] = (),
    receptive_field: bool = True,
    zoom: bool = True,
) -> Figure:
    """Draw an explanation: a panel for each layer on which the output depends, and one for its receptive field.

    Red points add to the output, blue ones subtract from it; areas are proportional to magnitude. In the first panel,
    lines from the regular grid mark the cell with the strongest points (in a last layer, the predicting cell). Panels
    of layers show only the surroundings of a small box, unless ``zoom`` is False. Without ``photo`` the explanation's
    own is drawn, or the network's input; ``fit`` says how a photo of another size was resized to that. ``layers`` are
    names of layers (default: those on which the output depends, from the output downwards).

    Of a decoder with deformable attention, panels show the points of the object query behind the detection (or the
    query with the strongest points in the last layer), with its reference in that layer. Encoders are drawn if
    ``layers`` names them, with the points of all queries.

    Example:
        >>> figure = ds.draw.explanation(ds.explain(detector, "photo.jpg"))
    """
    backdrop, explained = _on_photo(explained, photo, fit)
    chosen = [_named(explained, name) for name in layers] or [*_shown(explained), *_decoder(explained)]
    if not chosen and not receptive_field:
        raise DeformscopeError(
            "explained: depends on no deformable convolution and on no decoder's deformable attention that is "
            f"explained, so there is nothing to draw{explained.left_out}"
        )
    window = Window.around(explained.box if zoom and chosen else None, backdrop.size)
    count = len(chosen) + receptive_field
    result = row_of_panels(count, backdrop.size)
    near = backdrop.within(result.inches * backdrop.size[1] / window.width)
    axes = result.flat()
    for index, layer in enumerate(chosen):
        magnitude, more, whose = layer.points.abs(), "", ""
        if isinstance(layer, Attribution):
            shown, total = attributions(axes[index], near, layer, window, grid=index == 0), layer.points.numel()
        else:
            query = None if layer.field.is_dense else _query(explained, layer)
            shown, total = query_attributions(axes[index], near, layer, window, query)
            if query is not None:
                share = float(magnitude[query].sum() / magnitude.sum().clamp(min=1e-12))
                whose, more = f"query {query} · ", f"; this query has {share:.0%} of the layer's magnitude"
                more += "; dashed: its reference box" if layer.field.has_boxes else ""
                magnitude = magnitude[query]
        outline(axes[index], explained, window)
        largest = float(magnitude.max())
        held = float(magnitude[magnitude >= LEAST_SHARE * largest].sum() / magnitude.sum().clamp(min=1e-12))
        result.caption(
            axes[index],
            f"{primitives.escaped(layer.field.name)} · {whose}{_what(explained)}",
            f"sampling points: red adds, blue subtracts, area by magnitude, strongest {largest:.2g}; "
            f"{shown} of {total} shown, with {held:.0%} of the magnitude{more}",
        )
    if receptive_field:
        ax = axes[len(chosen)]
        _receptive(result, ax, backdrop.within(result.inches), explained, "receptive field")
        if window.width < backdrop.size[1]:
            corner, sides = (window.left, window.top), (window.width, window.height)
            ax.add_patch(
                Rectangle(corner, *sides, fill=False, edgecolor="black", linewidth=0.7, linestyle=":", zorder=4)
            )
    return result.finished()


@own_settings()
def receptive_field(
    explained: Explanation | Mapping[str, Explanation], photo: Photo | None = None, *, fit: str | None = None
) -> Figure:
    """Draw effective receptive fields: contours around 50 and 95 % of the mass, the centre, and the box.

    Several explanations, by their captions ("with offsets", "without"), are drawn side by side.

    Example:
        >>> why = ds.explain(detector, "photo.jpg")
        >>> without = ds.explain(ds.load("packaged", offset_mode="none"), "photo.jpg", why.detection)
        >>> figure = ds.draw.receptive_field({"with offsets": why, "without": without})
    """
    several = {"": explained} if isinstance(explained, Explanation) else dict(explained)
    if not several:
        raise DeformscopeError("explained: none given; expected at least one explanation")
    placed = {name: _on_photo(one, photo, fit) for name, one in several.items()}
    backdrop = next(iter(placed.values()))[0]
    result = row_of_panels(len(several), backdrop.size)
    backdrop = backdrop.within(result.inches)
    for ax, (name, (_, one)) in zip(result.flat(), placed.items(), strict=False):
        title = "receptive field" + (f" · {primitives.escaped(name)}" if name else "")
        _receptive(result, ax, backdrop, one, title)
    return result.finished()


def _receptive(result: Sheet, ax: Axes, backdrop: Backdrop, explained: Explanation, title: str) -> None:
    field, whole = explained.receptive_field, Window.around(None, backdrop.size)
    primitives.photo(ax, backdrop, WASH)
    contours(ax, field)
    outline(ax, explained, whole)
    whole.apply(ax)
    text = (
        f"contours: 50 and 95 % of what {_what(explained)} depends on "
        f"(radii {field.radius(0.5):.3g} and {field.radius(0.95):.3g} px)"
    )
    if explained.box is not None:
        share, chance = field.share_in(explained.box), field.over_chance(explained.box)
        text += f"; {share:.0%} in the box, {chance:.2g} × chance"
    result.caption(ax, title, text)


def _shown(explained: Explanation) -> list[Attribution]:
    """The layers that have a panel by default, from the output downwards."""
    reached = list(explained.reached.values())[::-1]
    if len(reached) <= MOST_LAYERS:
        return reached
    last = {layer.field.reduction: layer for layer in reached[::-1]}
    return [layer for layer in reached if any(layer is one for one in last.values())]


def _decoder(explained: Explanation) -> list[AttentionAttribution]:
    """A decoder's last layers, from the output downwards."""
    return [layer for layer in explained.reached_attention.values() if not layer.field.is_dense][::-1][:MOST_LAYERS]


def _named(explained: Explanation, name: str) -> Attribution | AttentionAttribution:
    if name in explained.attention:
        return explained.attention[name]
    if name not in explained.layers and explained.attention:
        known = ", ".join(map(repr, (*explained.layers, *explained.attention)))
        raise DeformscopeError(f"layers={name!r}: expected some of the explained layers: {known}")
    return explained.layer(name)


def _query(explained: Explanation, layer: AttentionAttribution) -> int:
    """The object query to draw: that of the detection, otherwise that with the strongest points in the last layer."""
    if "query" in explained.detection and int(explained.detection["query"][0]) < len(layer.points):
        return int(explained.detection["query"][0])
    same = [one for one in _decoder(explained) if len(one.points) == len(layer.points)]
    return (same or [layer])[0].strongest_query()


def _what(explained: Explanation) -> str:
    names = {"score": f"the log-odds of {explained.label}", "iou": "the IoU logit", "output": "the output"}
    names |= {side: f"the box's {side} side" for side in SIDES}
    return primitives.escaped(names.get(explained.of, explained.of))


def _on_photo(explained: Explanation, photo: Photo | None, fit: str | None) -> tuple[Backdrop, Explanation]:
    """The photo to draw on, and the explanation in its px."""
    given = explained.photo if photo is None else photo
    layers: dict[str, Any] = {**explained.layers, **explained.attention}
    if given is None and not any(layer.field.image is not None for layer in layers.values()):
        raise DeformscopeError(
            "photo=None: the explanation is of a model that prepares no photos, and its input was not recorded; give "
            "the photo"
        )
    backdrop, fields = on_photo([layer.field for layer in layers.values()], given, fit)
    of = dict(zip(layers, fields, strict=True))
    reached = explained.receptive_field
    if explained.photo is None:  # its px are those of the network's input
        height, width = reached.gradient.shape
        reached = replace(reached, placement=Placement.fitted(backdrop.size, (height, width), fit))
    return backdrop, replace(
        explained,
        layers={name: replace(layer, field=of[name]) for name, layer in explained.layers.items()},
        attention={name: replace(layer, field=of[name]) for name, layer in explained.attention.items()},
        receptive_field=reached,
    )


def attributions(ax: Axes, backdrop: Backdrop, layer: Attribution, window: Window, *, grid: bool = False) -> int:
    """Draw the sampling points of a layer by their attribution; returns the number of points drawn.

    ``grid`` adds lines from the regular grid for the cell with the strongest points.
    """
    primitives.photo(ax, backdrop, WASH)
    values, places = layer.points.numpy(), layer.places().numpy()
    largest = float(np.abs(values).max(initial=0.0))
    shown = (np.abs(values) >= LEAST_SHARE * largest) & (values != 0) & np.isfinite(places).all(axis=-1)
    if grid:
        row, column = layer.strongest_cell()
        shown[:, :, row, column] = np.isfinite(places[:, :, row, column]).all(axis=-1)
        regular = layer.field.to_pixels(layer.field.regular_points()[:, row, column]).numpy()
        for group in places[:, :, row, column]:
            primitives.lines(ax, regular, group, color="#222222", width=0.8)
        primitives.plus(ax, regular.mean(axis=0), 8, zorder=3.6)
    signed_points(ax, places[shown], values[shown], max(window.height, window.width) / LARGEST)
    window.apply(ax)
    return int(shown.sum())


def query_attributions(
    ax: Axes, backdrop: Backdrop, layer: AttentionAttribution, window: Window, query: int | None
) -> tuple[int, int]:
    """Draw the sampling points of one query (None: of all) by their attribution, and the query's reference.

    Returns the numbers of points drawn and of all that could be.
    """
    primitives.photo(ax, backdrop, WASH)
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
        primitives.plus(ax, view.reference, 8, zorder=3.6)
    signed_points(ax, places[shown], values[shown], max(window.height, window.width) / LARGEST)
    window.apply(ax)
    return int(shown.sum()), int(shown.size)


def signed_points(ax: Axes, places: primitives.Points, values: np.ndarray, largest: float) -> EllipseCollection:
    """Dots, red for positive and blue for negative ``values``, with areas by magnitude; the strongest on top.

    ``largest`` is the diameter of the strongest, px.
    """
    order = np.argsort(np.abs(values))
    share = np.abs(values[order]) / max(float(np.abs(values).max(initial=0.0)), 1e-12)
    artist = primitives.discs(ax, places[order], largest * np.sqrt(share.clip(0.02)), linewidths=0.3)
    artist.set(cmap=style.SIGNED_MAP, edgecolors=(0, 0, 0, 0.5))
    # Weak dots are smaller, but hardly paler, so that their sign is visible.
    artist.set(array=np.sign(values[order]) * (0.5 + 0.5 * share), clim=(-1.15, 1.15), alpha=0.92)
    return artist


def contours(ax: Axes, field: ReceptiveField) -> QuadContourSet | None:
    """Contours around 50 and 95 % of a receptive field's mass, smoothed, and a dot at its centre. None without mass."""
    from scipy.ndimage import gaussian_filter

    step = max(1, max(field.placement.size) // 512)  # enough for a contour of a large photo
    heat = field.heatmap(step)
    if not np.isfinite(heat).all():
        return None
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
    """The explained box, with its class and score below its points."""
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

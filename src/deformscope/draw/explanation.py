"""Figures of explanations: a panel per layer with its sampling points, and the effective receptive field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..backdrop import Backdrop, on_photo
from ..errors import DeformscopeError
from ..explain.attention import AttentionAttribution
from ..explain.explanation import Attribution, Explanation
from ..explain.targets import SIDES
from ..fields.places import Placement
from ..photo import Photo
from . import primitives
from .attribution import LEAST_SHARE, WASH, attributions, contours, outline, query_attributions
from .figures import row_of_panels
from .own_settings import own_settings
from .sheet import caption
from .window import Window

MOST_LAYERS = 3
"""Number of panels of layers; if the output depends on more, the last of each reduction is shown, and a decoder's last.
"""


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
    own is drawn, or the network's input; ``fit`` says how that was made of a photo of another size. ``layers`` are
    names of layers (default: those on which the output depends, from the output downwards).

    Of a decoder with deformable attention, panels show the points of the object query that made the detection (or the
    query with the strongest points in the last layer), with the query's reference in that layer. Encoders, of which
    the points of all queries are drawn, are shown if ``layers`` names them.

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
    axes, room = result.flat(), 0.0
    for index, layer in enumerate(chosen):
        magnitude, told, whose = layer.points.abs(), "", ""
        if isinstance(layer, Attribution):
            shown, total = attributions(axes[index], near, layer, window, grid=index == 0), layer.points.numel()
        else:
            query = None if layer.field.is_dense else _query(explained, layer)
            shown, total = query_attributions(axes[index], near, layer, window, query)
            if query is not None:
                share = float(magnitude[query].sum() / magnitude.sum().clamp(min=1e-12))
                whose, told = f"query {query} · ", f"; {share:.0%} of the layer's magnitude is this query's"
                told += "; dashed: its reference box" if layer.field.has_boxes else ""
                magnitude = magnitude[query]
        outline(axes[index], explained, window)
        largest = float(magnitude.max())
        held = float(magnitude[magnitude >= LEAST_SHARE * largest].sum() / magnitude.sum().clamp(min=1e-12))
        used = caption(
            axes[index],
            f"{primitives.escaped(layer.field.name)} · {whose}{_what(explained)}",
            f"sampling points: red adds, blue takes away, area by magnitude, strongest {largest:.2g}; "
            f"{shown} of {total} shown, which hold {held:.0%}{told}",
        )
        room = max(room, used)
    if receptive_field:
        ax = axes[len(chosen)]
        room = max(room, _receptive(ax, backdrop.within(result.inches), explained, "receptive field"))
        if window.width < backdrop.size[1]:
            corner, sides = (window.left, window.top), (window.width, window.height)
            ax.add_patch(
                Rectangle(corner, *sides, fill=False, edgecolor="black", linewidth=0.7, linestyle=":", zorder=4)
            )
    result.fit(room)
    return result.figure


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
    backdrop, room = backdrop.within(result.inches), 0.0
    for ax, (name, (_, one)) in zip(result.flat(), placed.items(), strict=False):
        title = "receptive field" + (f" · {primitives.escaped(name)}" if name else "")
        room = max(room, _receptive(ax, backdrop, one, title))
    result.fit(room)
    return result.figure


def _receptive(ax: Axes, backdrop: Backdrop, explained: Explanation, title: str) -> float:
    """Returns the height of the caption, inches."""
    field, whole = explained.receptive_field, Window.around(None, backdrop.size)
    primitives.photo(ax, backdrop.washed(WASH), size=backdrop.size)
    contours(ax, field)
    outline(ax, explained, whole)
    whole.apply(ax)
    told = (
        f"contours: 50 and 95 % of what {_what(explained)} depends on "
        f"(radii {field.radius(0.5):.3g} and {field.radius(0.95):.3g} px)"
    )
    if explained.box is not None:
        share, chance = field.share_in(explained.box), field.over_chance(explained.box)
        told += f"; {share:.0%} in the box, {chance:.2g} × chance"
    return caption(ax, title, told)


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

"""Figures of explanations: a panel per layer with its sampling points, and the effective receptive field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..errors import DeformscopeError
from ..explain.explanation import Attribution, Explanation
from ..explain.targets import SIDES
from ..photo import Photo
from . import primitives
from .attribution import LEAST_SHARE, WASH, attributions, contours, outline
from .backdrop import Backdrop
from .figures import row_of_panels
from .own_settings import own_settings
from .sheet import caption
from .window import Window

MOST_LAYERS = 3
"""Number of panels of layers; if the output depends on more layers, the last of each reduction is shown."""


@own_settings()
def explanation(
    explained: Explanation,
    photo: Photo | None = None,
    *,
    layers: Sequence[str] = (),
    receptive_field: bool = True,
    zoom: bool = True,
) -> Figure:
    """Draw an explanation: a panel for each layer on which the output depends, and one for its receptive field.

    Red points add to the output, blue ones subtract from it; areas are proportional to magnitude. In the first panel,
    lines from the regular grid mark the cell with the strongest points (in a last layer, the predicting cell). Panels
    of layers show only the surroundings of a small box, unless ``zoom`` is False. ``photo`` is needed if the
    explanation has none; ``layers`` are names of layers (default: those on which the output depends, from the output
    downwards).

    Example:
        >>> figure = ds.draw.explanation(ds.explain(detector, "photo.jpg"))
    """
    backdrop = _backdrop(explained, photo)
    chosen = [explained.layer(name) for name in layers] or _shown(explained)
    if not chosen and not receptive_field:
        raise DeformscopeError("explained: depends on no deformable convolution, so there is nothing to draw")
    window = Window.around(explained.box if zoom and chosen else None, backdrop.size)
    result = row_of_panels(len(chosen) + receptive_field, backdrop.size)
    near = backdrop.within(result.inches * backdrop.size[1] / window.width)
    axes = result.flat()
    for index, layer in enumerate(chosen):
        shown = attributions(axes[index], near, layer, window, grid=index == 0)
        outline(axes[index], explained, window)
        magnitude = layer.points.abs()
        largest = float(magnitude.max())
        held = float(magnitude[magnitude >= LEAST_SHARE * largest].sum() / magnitude.sum().clamp(min=1e-12))
        caption(
            axes[index],
            f"{primitives.escaped(layer.field.name)} · {_what(explained)}",
            f"sampling points: red adds, blue takes away, area by magnitude, strongest {largest:.2g}; "
            f"{shown} of {layer.points.numel()} shown, which hold {held:.0%}",
        )
    if receptive_field:
        ax = axes[len(chosen)]
        _receptive(ax, backdrop.within(result.inches), explained, "receptive field")
        if window.width < backdrop.size[1]:
            corner, sides = (window.left, window.top), (window.width, window.height)
            ax.add_patch(
                Rectangle(corner, *sides, fill=False, edgecolor="black", linewidth=0.7, linestyle=":", zorder=4)
            )
    return result.figure


@own_settings()
def receptive_field(explained: Explanation | Mapping[str, Explanation], photo: Photo | None = None) -> Figure:
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
    backdrop = _backdrop(next(iter(several.values())), photo)
    result = row_of_panels(len(several), backdrop.size)
    backdrop = backdrop.within(result.inches)
    for ax, (name, one) in zip(result.flat(), several.items(), strict=False):
        _receptive(ax, backdrop, one, "receptive field" + (f" · {primitives.escaped(name)}" if name else ""))
    return result.figure


def _receptive(ax: Axes, backdrop: Backdrop, explained: Explanation, title: str) -> None:
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
    caption(ax, title, told)


def _shown(explained: Explanation) -> list[Attribution]:
    """The layers that have a panel by default, from the output downwards."""
    reached = list(explained.reached.values())[::-1]
    if len(reached) <= MOST_LAYERS:
        return reached
    last = {layer.field.reduction: layer for layer in reached[::-1]}
    return [layer for layer in reached if any(layer is one for one in last.values())]


def _what(explained: Explanation) -> str:
    names = {"score": f"the log-odds of {explained.label}", "iou": "the IoU logit"}
    names |= {side: f"the box's {side} side" for side in SIDES}
    return primitives.escaped(names.get(explained.of, explained.of))


def _backdrop(explained: Explanation, photo: Photo | None) -> Backdrop:
    given = explained.photo if photo is None else photo
    if given is None:
        raise DeformscopeError("photo=None: the explanation is of a model that prepares no photos; give the photo")
    return Backdrop.of(given)

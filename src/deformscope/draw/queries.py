"""Object queries of deformable attention: where each one samples, in each decoder layer.

One row per query and one panel per layer: the reference box of the layer (dashed), the sampling points of all heads,
coloured and sized by weight, and their weighted mean beside the centre of the box.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from ..photo import Photo
from . import primitives
from .backdrop import Backdrop
from .own_settings import own_settings
from .sheet import caption, sheet
from .style import BOX, FAINT

WEIGHTS = "plasma"
AROUND = 1.5
"""The part of the photo that is shown: this multiple of the reference box, and the points with nearly all weight."""
SHOWN_WEIGHT = 0.95
LEAST_WINDOW = 0.3
"""Smallest part that is shown, relative to the photo's sides."""


@own_settings()
def queries(
    fields: AttentionField | Sequence[AttentionField] | Mapping[str, AttentionField],
    photo: Photo,
    chosen: Sequence[int],
    *,
    image: int = 0,
    titles: Sequence[str] | None = None,
    head: int | None = None,
) -> Figure:
    """Sampling points of object queries over the photo: a row for each of ``chosen``, a panel for each layer.

    ``fields`` are calls of one decoder, in order (``fields.attention`` of a capture). ``chosen`` are queries' indices,
    such as those of the best detections; ``titles`` say what each found. ``head`` shows one head alone.

    Raises DeformscopeError for a query, head or image that is not there, and for queries without reference boxes.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> best = output.logits[0].sigmoid().amax(-1).topk(2).indices.tolist()
        >>> decoder = [field for name, field in fields.attention.items() if "decoder" in name]
        >>> ds.draw.queries(decoder, photo, best).savefig("queries.png")
    """
    layers = _as_list(fields)
    backdrop = Backdrop.of(photo)
    _check(layers, chosen, image, titles, head)
    result = sheet(len(chosen), len(layers), backdrop.size, caption=0.62)
    for row, query in enumerate(chosen):
        for column, field in enumerate(layers):
            ax = result.panels[row][column]
            title = titles[row] if titles is not None and column == 0 else ""
            _panel(ax, backdrop, field.select(image), query, head, title)
    return result.figure


def _panel(ax: Axes, backdrop: Backdrop, field: AttentionField, query: int, head: int | None, title: str) -> None:
    heads = slice(None) if head is None else slice(head, head + 1)
    points = field.to_pixels(field.points[0, query, heads].double()).reshape(-1, 2).numpy()
    weights = np.full(len(points), 1.0) if field.weights is None else field.weights[0, query, heads].flatten().numpy()
    weights = weights / max(float(weights.sum()), 1e-12)
    box = _box(field, query)
    centre = (weights[:, None] * points).sum(axis=0)
    spread = np.sqrt((weights[:, None] * (points - centre) ** 2).sum(axis=0))
    window = _window(box, points, weights, backdrop.size)
    primitives.photo(ax, backdrop.washed(0.3), size=backdrop.size)
    (top, left), (high, wide) = box[:2], box[2:] - box[:2]
    ax.add_patch(Rectangle((left, top), wide, high, fill=False, ec="black", lw=2.4, zorder=3))
    ax.add_patch(Rectangle((left, top), wide, high, fill=False, ec=BOX, lw=1.4, ls="--", zorder=3))
    order = np.argsort(weights)
    most = max(float(weights.max()), 1e-12)
    ax.scatter(
        points[order, 1],
        points[order, 0],
        s=6 + 90 * weights[order] / most,
        c=weights[order],
        cmap=WEIGHTS,
        vmin=0,
        vmax=most,
        edgecolors="white",
        linewidths=0.5,
        zorder=4,
    )
    middle = (box[:2] + box[2:]) / 2
    ax.plot(*middle[::-1], "+", ms=11, mew=3.2, color="black", zorder=5)
    ax.plot(*middle[::-1], "+", ms=10, mew=1.6, color=BOX, zorder=5)
    ax.plot(*centre[::-1], "x", ms=9, mew=3.6, color="black", zorder=6)
    ax.plot(*centre[::-1], "x", ms=8, mew=1.8, color="#76ff03", zorder=6)
    ax.set(xlim=(window[1], window[3]), ylim=(window[2], window[0]))
    inside = weights[((points >= box[:2]) & (points <= box[2:])).all(axis=1)].sum()
    hidden = int(((points < window[:2]) | (points > window[2:])).any(axis=1).sum())
    what = f"{title}: " if title else ""
    beyond = f"; {hidden} point{'s'[: hidden != 1]} not shown" if hidden else ""
    caption(
        ax,
        primitives.escaped(f"{what}query {query}, {field.name}" + ("" if head is None else f", head {head}")),
        f"{inside:.0%} of the weight in the reference box; mean (×) {np.hypot(*(centre - middle)):.0f} px from its "
        f"centre (+); spread {spread[1]:.0f} × {spread[0]:.0f} px, box {wide:.0f} × {high:.0f}{beyond}",
    )
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.5)


def _box(field: AttentionField, query: int) -> np.ndarray:
    """The reference box, (top, left, bottom, right) in photo px."""
    y, x, height, width = field.reference[0, query].double().tolist()
    corners = torch.tensor([[y - height / 2, x - width / 2], [y + height / 2, x + width / 2]], dtype=torch.float64)
    return field.to_pixels(corners).flatten().numpy()


def _window(box: np.ndarray, points: np.ndarray, weights: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The part of the photo to show, with its aspect ratio: (top, left, bottom, right)."""
    order = np.argsort(weights)[::-1]
    heavy = points[order[: int(np.searchsorted(np.cumsum(weights[order]), SHOWN_WEIGHT)) + 1]]
    photo = np.array(size, dtype=float)
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * AROUND
    low = np.clip(np.minimum(middle - half, heavy.min(axis=0) - 8), 0, photo)
    high = np.clip(np.maximum(middle + half, heavy.max(axis=0) + 8), 0, photo)
    share = min(1.0, max(LEAST_WINDOW, float(((high - low) / photo).max())))
    side = share * photo
    start = np.clip((low + high) / 2 - side / 2, 0, photo - side)
    return np.concatenate([start, start + side])


def _as_list(fields: AttentionField | Sequence[AttentionField] | Mapping[str, AttentionField]) -> list[AttentionField]:
    if isinstance(fields, AttentionField):
        return [fields]
    return list(fields.values()) if isinstance(fields, Mapping) else list(fields)


def _check(
    layers: Sequence[AttentionField],
    chosen: Sequence[int],
    image: int,
    titles: Sequence[str] | None,
    head: int | None,
) -> None:
    if not layers or not chosen:
        raise DeformscopeError(
            f"{len(layers)} fields and {len(chosen)} queries: expected at least one of each; "
            "take fields from `fields.attention` after `with ds.capture(model) as fields`"
        )
    if titles is not None and len(titles) != len(chosen):
        raise DeformscopeError(f"titles: {len(titles)} given for {len(chosen)} queries; expected one each")
    for field in layers:
        if not field.has_boxes:
            raise DeformscopeError(
                f"{field.name}: its references are points, not boxes; an encoder's queries are drawn as an offset "
                "field: field.dense(query_level, value_level)"
            )
        n, q, h = field.points.shape[:3]
        for argument, value, count in (("image", image, n), ("head", 0 if head is None else head, h)):
            if not 0 <= value < count:
                raise DeformscopeError(f"{argument}={value}: expected 0 to {count - 1} in {field.name!r}")
        for query in chosen:
            if not 0 <= query < q:
                raise DeformscopeError(f"chosen={query}: expected queries from 0 to {q - 1} of {field.name!r}")

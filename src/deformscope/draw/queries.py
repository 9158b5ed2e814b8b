"""Object queries of deformable attention: where each one samples in each decoder layer, and how far.

In :func:`queries`, one row per query and one panel per layer: the reference of the layer, the sampling points of all
heads, coloured and sized by weight, and their weighted mean and spread compared with the box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.transforms import IdentityTransform

from ..backdrop import Backdrop, on_photo
from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from ..photo import Photo
from . import primitives
from .sheet import MARGIN, Picture, Sheet, sheet
from .style import BOX, FAINT, INK, own_settings
from .text import NBSP, drawable, width as text_width

AttentionLike = AttentionField | Sequence[AttentionField] | Mapping[str, AttentionField]
"""One field, several, or those of a capture."""
AROUND = 1.5
"""The part of the photo that is shown: this multiple of the reference boxes, and the points with most of the weight."""
SHOWN_WEIGHT = 0.95
LEAST_WINDOW = 0.2
"""Smallest part that is shown, relative to the photo's sides."""
BEYOND = 0.04
"""Margin around the photo, relative to its sides, in which points beyond it are still shown."""
FULL = 0.995
"""Colours and areas are full at this quantile of the weights of the whole figure."""
FOUND = "#ffb300"
KEY_LINE = 0.19
"""Inches between lines of the key."""
EVEN = 1 / math.sqrt(3)
"""The radius of an evenly filled box, in its sizes: 2 · √(1/12)."""
CHOSEN = ("#d7191c", "#2b8cbe", "#008837", "#e66101", "#7b3294", "#018571")
FONT_POINTS = 7
WEIGHTS = "plasma"
MARKERS = ("o", "s", "D", "^", "p")
"""Of the levels' maps, in their order."""
LEAST_AREA, MOST_AREA = 5.0, 95.0
"""Of a point without weight, and of the heaviest, in square points."""
MEAN = "#76ff03"


@dataclass(frozen=True)
class QueryView:
    """Where one query looks in one layer, (y, x) in photo px."""

    points: np.ndarray
    """[m 2]: of all heads and levels."""
    weights: np.ndarray
    """[m]: sum 1."""
    level: np.ndarray
    """[m]."""
    heads: np.ndarray
    """[h 2]: the weighted mean of each head's points."""
    reference: np.ndarray
    """[2]: the reference point, or the centre of the reference box."""
    box: np.ndarray | None
    """(top, left, bottom, right) of the reference box."""

    @classmethod
    def of(cls, field: AttentionField, query: int, head: int | None = None) -> QueryView:
        """View one query of ``field`` (n = 1), with all heads or one."""
        chosen = slice(None) if head is None else slice(head, head + 1)
        points = field.to_pixels(field.points[0, query, chosen].double()).numpy()  # [h p 2]
        weights = np.ones(points.shape[:2])
        if field.weights is not None:
            weights = field.weights[0, query, chosen].double().numpy()
        shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        reference = field.reference[0, query].double()
        box = None
        if field.has_boxes:
            half = reference[2:] / 2
            corners = torch.stack([reference[:2] - half, reference[:2] + half])
            box = field.to_pixels(corners).flatten().numpy()
        return cls(
            points.reshape(-1, 2),
            weights.ravel() / max(float(weights.sum()), 1e-12),
            np.tile(field.level.numpy(), len(points)),
            (shares[..., None] * points).sum(axis=1),
            field.to_pixels(reference[:2]).numpy(),
            box,
        )

    @property
    def centre(self) -> np.ndarray:
        """[2]: the weighted mean of all points."""
        return (self.weights[:, None] * self.points).sum(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """[2]: their weighted standard deviation."""
        return np.sqrt((self.weights[:, None] * (self.points - self.centre) ** 2).sum(axis=0))

    def heavy(self, share: float) -> np.ndarray:
        """The heaviest points, which have ``share`` of the weight."""
        order = np.argsort(self.weights)[::-1]
        return self.points[order[: int(np.searchsorted(np.cumsum(self.weights[order]), share)) + 1]]

    def inside(self, box: np.ndarray) -> float:
        """The share of the weight in a box (top, left, bottom, right)."""
        return float(self.weights[((self.points >= box[:2]) & (self.points <= box[2:])).all(axis=1)].sum())


@own_settings()
def queries(
    fields: AttentionLike,
    photo: Photo | None = None,
    chosen: Sequence[int] = (),
    *,
    fit: str | None = None,
    image: int = 0,
    titles: Sequence[str] | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    head: int | None = None,
) -> Figure:
    """Sampling points of object queries over the photo: a row for each of ``chosen``, a panel for each layer.

    ``fields`` are calls of one decoder, in order, or ``fields.attention`` of a capture, whose encoders are left out.
    ``chosen`` are queries' indices, such as those of the best detections; ``titles`` say what each found, and ``boxes``
    (xyxy, photo px) where. ``head`` shows one head alone. All panels of a row show the same part of the photo, and a
    weight has one colour in all of the figure.

    Raises DeformscopeError for a query, head or image out of range, and for an encoder alone.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> best = output.logits[0].sigmoid().amax(-1).topk(2).indices.tolist()
        >>> ds.draw.queries(fields.attention, photo, best).savefig("queries.png")
    """
    layers = attention_layers(fields)
    if not chosen:
        raise DeformscopeError("chosen: no queries given; expected at least one, such as [0]")
    for field in layers:
        if field.is_dense:
            raise DeformscopeError(
                f"{field.name}: an encoder's queries are the cells of its maps; draw them as an offset field: "
                "fields.moments.moments(field, query_level), or field.dense(query_level, value_level)"
            )
    _check(layers, chosen, image, head or 0, titles=titles, boxes=boxes)
    backdrop, layers = on_photo([field.select(image) for field in layers], photo, fit)
    views = [[QueryView.of(field, query, head) for field in layers] for query in chosen]
    most = float(np.quantile(np.concatenate([view.weights for row in views for view in row]), FULL)) or 1.0
    columns = len(layers) if len(layers) <= 3 else -(-len(layers) // -(-len(layers) // 4))
    lines = -(-len(layers) // columns)
    result = sheet(len(chosen) * lines, columns, backdrop.size)
    for row, (query, of_query) in enumerate(zip(chosen, views, strict=True)):
        found = None if boxes is None else np.array(boxes[row], dtype=float)[[1, 0, 3, 2]]
        window = _window(of_query, found, backdrop.size)
        panels = [ax for line in result.panels[row * lines : (row + 1) * lines] for ax in line]
        for number, (ax, view) in enumerate(zip(panels, of_query, strict=False)):
            _panel(ax, backdrop, view, window, found, most)
            which = f"decoder layer {number + 1} of {len(layers)}" if len(layers) > 1 else ""
            one = "" if head is None else f"head {head}"
            parts = ["" if titles is None else drawable(titles[row]), f"query {query}", which, one]
            label = primitives.escaped(" · ".join(filter(None, parts)))
            result.caption(ax, label, _details(view, window))
        for ax in panels[len(layers) :]:
            ax.set_axis_off()
    _key(result, layers, most, boxes is not None)
    return result.figure


@own_settings()
def query_sizes(
    fields: AttentionLike, chosen: Sequence[int] = (), *, image: int = 0, titles: Sequence[str] | None = None
) -> Figure:
    """Radius against the size of the reference box, a dot for each query, a panel for each layer; photo px.

    The radius is √(width · height), each two weighted standard deviations of the points; the size is √(width · height)
    of the box. The line is that of points that fill the box evenly. ``chosen`` queries are drawn in colour, with their
    ``titles``.

    Raises DeformscopeError for queries out of range, and without reference boxes.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> decoder = [field for name, field in fields.attention.items() if "decoder" in name]
        >>> ds.draw.query_sizes(decoder, [0, 1]).savefig("sizes.png")
    """
    layers = attention_layers(fields)
    _check(layers, chosen, image, 0, titles=titles)
    for field in layers:
        if not field.has_boxes:
            raise DeformscopeError(f"{field.name}: its references are points, which have no size")
    sizes = [_sizes(field, image) for field in layers]
    columns = min(len(layers), 3)
    rows = -(-len(layers) // columns)
    figure = Picture(figsize=(3.3 * columns, 3.1 * rows + 0.3), facecolor="white", layout="constrained")
    found = np.concatenate([np.concatenate(pair) for pair in sizes])
    found = found[np.isfinite(found) & (found > 0)]
    ends = (float(found.min()) / 1.3, float(found.max()) * 1.3) if found.size else (1.0, 10.0)
    for number, (box, radius) in enumerate(sizes):
        ax = figure.add_subplot(rows, columns, number + 1)
        ax.plot(ends, [EVEN * end for end in ends], color=FAINT, lw=0.9, label="evenly filled box")
        ax.scatter(box, radius, s=9, color="#9aa3ad", linewidths=0, label="queries")
        for place, query in enumerate(chosen):
            title = drawable(titles[place]) if titles is not None else f"query {query}"
            color = CHOSEN[place % len(CHOSEN)]
            ax.scatter(box[query], radius[query], s=42, color=color, edgecolors="white", linewidths=0.8, label=title)
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
        ax.set_title(f"decoder layer {number + 1} of {len(layers)}", fontsize=8, color=INK, loc="left")
        ax.set_xlabel("size of the reference box, px", fontsize=FONT_POINTS)
        if number % columns == 0:
            ax.set_ylabel("radius of the points, px", fontsize=FONT_POINTS)
        ax.tick_params(which="both", labelsize=FONT_POINTS, colors=FAINT)
        ax.grid(visible=True, which="major", color="#e3e6ea", lw=0.6)
        ax.set_axisbelow(True)
        for spine in ax.spines.values():
            spine.set(color="#c4c9cf", linewidth=0.7)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(4, len(labels))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, fontsize=FONT_POINTS, frameon=False)
    return figure


def _sizes(field: AttentionField, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query: the size of its reference box and the radius of its points, photo px."""
    scale = math.sqrt(math.prod(field.placement(image).scale))
    box = field.reference[image, :, 2:].double().prod(dim=1).clamp(min=0).sqrt() / scale
    radius = 2 * field.spread()[image].double().prod(dim=1).sqrt() / scale
    return box.cpu().numpy(), radius.cpu().numpy()


def _panel(
    ax: Axes, backdrop: Backdrop, view: QueryView, window: np.ndarray, found: np.ndarray | None, most: float
) -> None:
    primitives.photo(ax, backdrop, 0.3)
    if found is not None:
        rectangle(ax, found, FOUND)
    if view.box is not None:
        rectangle(ax, view.box, BOX, dashed=True)
    samples(ax, view, most)
    moments(ax, view)
    ax.set(xlim=(window[1], window[3]), ylim=(window[2], window[0]))
    framed(ax)


def _details(view: QueryView, window: np.ndarray) -> str:
    apart = np.hypot(*(view.centre - view.reference))
    high, wide = view.spread
    parts = [f"mean {apart:.0f}{NBSP}px from {'the reference' if view.box is None else 'its centre'}"]
    parts.append(f"spread {high:.0f}{NBSP}×{NBSP}{wide:.0f}{NBSP}px")
    if view.box is not None:
        tall, broad = view.box[2:] - view.box[:2]
        parts.insert(0, f"{view.inside(view.box):.0%} of the weight in the reference box")
        parts[-1] += f" in a box of {tall:.0f}{NBSP}×{NBSP}{broad:.0f}"
    hidden = int(((view.points < window[:2]) | (view.points > window[2:])).any(axis=1).sum())
    return " · ".join([*parts, *([f"{hidden} not shown"] if hidden else [])])


def _key(result: Sheet, layers: Sequence[AttentionField], most: float, found: bool) -> None:
    """Explain the signs below all panels."""
    sizes = layers[0].level_sizes
    handles = []
    if len(sizes) > 1 and all(field.level_sizes == sizes for field in layers):
        handles += [_dot(MARKERS[n % len(MARKERS)], INK, f"on the {h}×{w} map", 6) for n, (h, w) in enumerate(sizes)]
    if layers[0].weights is not None:
        ramp = ((0.0, LEAST_AREA, "no weight"), (1.0, MOST_AREA, f"weight {most:.2g} of the query's total"))
        handles += [_dot("o", colormaps[WEIGHTS](share), label, math.sqrt(area)) for share, area, label in ramp]
    if layers[0].has_boxes:
        handles.append(Line2D([], [], color=BOX, ls="--", label="reference box of the layer"))
    if found:
        handles.append(Line2D([], [], color=FOUND, label="detected box"))
    dark = [withStroke(linewidth=3.0, foreground="black")]
    handles.append(_dot("+", BOX, "its centre" if layers[0].has_boxes else "reference point", 7, path_effects=dark))
    handles.append(_dot("x", MEAN, "weighted mean, in an ellipse of the spread", 6, path_effects=dark))
    handles.append(Line2D([], [], color="white", lw=0.9, label="mean of each head", path_effects=dark))
    room = float(result.figure.get_figwidth()) - 2 * MARGIN
    widest = max(text_width(str(handle.get_label()), 7) for handle in handles)
    columns = max(1, min(len(handles), int(room / (widest + 0.55))))
    result.fit(result.room, -(-len(handles) // columns) * KEY_LINE + 0.12)
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 0), "borderaxespad": 0.2}
    result.figure.legend(handles=handles, ncols=columns, fontsize=7, labelcolor=FAINT, frameon=False, **place)


def _dot(marker: str, color: Any, label: str, size: float, **more: Any) -> Line2D:
    return Line2D([], [], marker=marker, color=color, label=label, ms=size, ls="", **more)


def _window(views: Sequence[QueryView], found: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """The part of the photo to show, with its aspect ratio: (top, left, bottom, right)."""
    photo = np.array(size, dtype=float)
    low, high = photo.copy(), np.zeros(2)
    for box in [*(view.box for view in views), found]:
        if box is not None:
            middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * AROUND
            low, high = np.minimum(low, middle - half), np.maximum(high, middle + half)
    for view in views:
        heavy = view.heavy(SHOWN_WEIGHT)
        low, high = np.minimum(low, heavy.min(axis=0) - 8), np.maximum(high, heavy.max(axis=0) + 8)
    # Points beyond the photo are shown within a margin, so that the photo stays large.
    margin = BEYOND * photo if any(((v.points < 0) | (v.points > photo)).any() for v in views) else 0 * photo
    low, high = np.clip(low, -margin, photo + margin), np.clip(high, -margin, photo + margin)
    side = max(LEAST_WINDOW, float(((high - low) / photo).max())) * photo
    start = np.clip((low + high) / 2 - side / 2, -margin, photo + margin - side)
    return np.concatenate([start, start + side])


def attention_layers(fields: AttentionLike) -> list[AttentionField]:
    """The fields as a list; of a capture, encoders are left out if there are decoders."""
    if isinstance(fields, AttentionField):
        return [fields]
    if not isinstance(fields, Mapping):
        return list(fields)
    return [field for field in fields.values() if not field.is_dense] or list(fields.values())


def _check(
    layers: Sequence[AttentionField], chosen: Sequence[int], image: int, head: int, **given: Sized | None
) -> None:
    """Raise DeformscopeError for indices out of range, and for ``given`` arguments that are not one per query."""
    if not layers:
        raise DeformscopeError("fields: none given; take them from `fields.attention` after ds.capture(model)")
    for argument, several in given.items():
        if several is not None and len(several) != len(chosen):
            raise DeformscopeError(f"{argument}: {len(several)} given for {len(chosen)} queries; expected one each")
    for field in layers:
        n, q, h = field.points.shape[:3]
        asked = [("image", image, n), ("head", head, h), *(("chosen", query, q) for query in chosen)]
        for argument, value, count in asked:
            if not 0 <= value < count:
                raise DeformscopeError(f"{argument}={value}: expected 0 to {count - 1} in {field.name!r}")


def rectangle(ax: Axes, box: np.ndarray, color: str, *, dashed: bool = False) -> None:
    """Outline (top, left, bottom, right), with a dark edge that is visible on any photo."""
    (top, left), (high, wide) = box[:2], box[2:] - box[:2]
    for edge, width, dash in (("black", 2.6, "-"), (color, 1.4, "--" if dashed else "-")):
        ax.add_patch(Rectangle((left, top), wide, high, fill=False, ec=edge, lw=width, ls=dash, zorder=3))


def samples(ax: Axes, view: QueryView, most: float) -> PathCollection:
    """The sampling points, heavy ones on top: colour and area show the weight (full at ``most``), the shape the map."""
    order = np.argsort(view.weights)
    strength = np.clip(view.weights[order] / most, 0, 1)
    dots = PathCollection(
        [marker(int(level)) for level in view.level[order]],
        LEAST_AREA + (MOST_AREA - LEAST_AREA) * strength,
        offsets=view.points[order, ::-1],
        offset_transform=ax.transData,
        facecolors=colormaps[WEIGHTS](strength),
        edgecolors="white",
        linewidths=0.5,
        zorder=4,
    )
    dots.set_transform(IdentityTransform())
    ax.add_collection(dots, autolim=False)
    return dots


def marker(level: int) -> Path:
    """The path of a level's points, of about the same area for each."""
    style = MarkerStyle(MARKERS[level % len(MARKERS)])
    return style.get_path().transformed(style.get_transform())


def moments(ax: Axes, view: QueryView) -> None:
    """The weighted mean (×) with an ellipse of one standard deviation, the mean of each head, and the reference (+)."""
    starts = np.broadcast_to(view.reference, view.heads.shape)
    if len(view.heads) > 1:
        rays = np.stack([starts[:, ::-1], view.heads[:, ::-1]], axis=1)
        for color, width in (("black", 1.6), ("white", 0.8)):
            lines = LineCollection(list(rays), colors=color, linewidths=width, alpha=0.75, zorder=3.4)
            ax.add_collection(lines, autolim=False)
    high, wide = 2 * view.spread
    for color, width in (("black", 2.6), (MEAN, 1.2)):
        ax.add_patch(Ellipse((view.centre[1], view.centre[0]), wide, high, fill=False, ec=color, lw=width, zorder=3.6))
    for place, sign, color, size in ((view.reference, "+", BOX, 10), (view.centre, "x", MEAN, 8)):
        ax.plot(*place[::-1], sign, ms=size + 1, mew=3.4, color="black", zorder=6)
        ax.plot(*place[::-1], sign, ms=size, mew=1.7, color=color, zorder=6)


def framed(ax: Axes) -> None:
    """A thin frame: what is shown may be a part of the photo."""
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.5)

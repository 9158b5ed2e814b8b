"""How wide object queries look against how large their reference boxes are, by decoder layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from .own_settings import own_settings
from .queries import attention_layers
from .sheet import Picture
from .style import FAINT, INK
from .text import drawable

EVEN = 1 / math.sqrt(3)
"""The radius of an evenly filled box, in its sizes: 2 · √(1/12)."""
CHOSEN = ("#d7191c", "#2b8cbe", "#008837", "#e66101", "#7b3294", "#018571")
POINTS = 7


@own_settings()
def query_sizes(
    fields: AttentionField | Sequence[AttentionField] | Mapping[str, AttentionField],
    chosen: Sequence[int] = (),
    *,
    image: int = 0,
    titles: Sequence[str] | None = None,
) -> Figure:
    """Radius against the size of the reference box, a dot for each query, a panel for each layer; photo px.

    The radius is √(width · height), each two weighted standard deviations of the points; the size is √(width · height)
    of the box. The line is that of points that fill the box evenly. ``chosen`` queries are drawn in colour, with their
    ``titles``.

    Raises DeformscopeError for queries that are not there, or without reference boxes.

    Example:
        >>> with torch.no_grad(), ds.capture(model) as fields:          # a Deformable DETR
        ...     output = model(pixel_values=pixels)
        >>> decoder = [field for name, field in fields.attention.items() if "decoder" in name]
        >>> ds.draw.query_sizes(decoder, [0, 1]).savefig("sizes.png")
    """
    layers = attention_layers(fields)
    if not layers:
        raise DeformscopeError("fields: none given; take them from `fields.attention` after ds.capture")
    if titles is not None and len(titles) != len(chosen):
        raise DeformscopeError(f"titles: {len(titles)} given for {len(chosen)} queries; expected one each")
    for field in layers:
        n, q = field.points.shape[:2]
        if not field.has_boxes:
            raise DeformscopeError(f"{field.name}: its references are points, which have no size")
        for argument, value, count in (("image", image, n), *(("chosen", query, q) for query in chosen)):
            if not 0 <= value < count:
                raise DeformscopeError(f"{argument}={value}: expected 0 to {count - 1} in {field.name!r}")
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
        ax.set_xlabel("size of the reference box, px", fontsize=POINTS)
        if number % columns == 0:
            ax.set_ylabel("radius of the points, px", fontsize=POINTS)
        ax.tick_params(which="both", labelsize=POINTS, colors=FAINT)
        ax.grid(visible=True, which="major", color="#e3e6ea", lw=0.6)
        ax.set_axisbelow(True)
        for spine in ax.spines.values():
            spine.set(color="#c4c9cf", linewidth=0.7)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=min(4, len(labels)), fontsize=POINTS, frameon=False)
    return figure


def _sizes(field: AttentionField, image: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each query: the size of its reference box and the radius of its points, photo px."""
    scale = math.sqrt(math.prod(field.placement(image).scale))
    box = field.reference[image, :, 2:].double().prod(dim=1).clamp(min=0).sqrt() / scale
    radius = 2 * field.spread()[image].double().prod(dim=1).sqrt() / scale
    return box.cpu().numpy(), radius.cpu().numpy()

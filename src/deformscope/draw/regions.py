"""Segments over the photo: one panel per field, one colour per segment, with its sink."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..backdrop import on_photo
from ..fields.segments import Segments, segments as grow
from ..photo import Photo
from . import primitives
from .figures import FieldsLike, as_list, row_of_panels
from .own_settings import own_settings
from .sheet import caption
from .view import FieldView

COLOURS = ((0.90, 0.12, 0.10), (0.00, 0.45, 0.85), (0.95, 0.65, 0.00), (0.10, 0.60, 0.30), (0.60, 0.25, 0.75))


@own_settings()
def segments(
    fields: FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    max_segments: int = 10,
    found: list[Segments] | None = None,
    group: int = 0,
) -> Figure:
    """Draw segments: regions of negative divergence around the sinks of d_f, the best ``max_segments`` of each field.

    They are numbered by score. ``found`` are the segments of the fields, if they are known already.

    Example:
        >>> ds.draw.segments(field, "photo.jpg", max_segments=3).savefig("segments.png")
    """
    from skimage.segmentation import find_boundaries

    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    result = row_of_panels(len(chosen), backdrop.size)
    backdrop = backdrop.within(result.inches)
    height, width = backdrop.size
    room = 0.0
    for number, (ax, field) in enumerate(zip(result.flat(), chosen, strict=False)):
        regions = grow(field, group) if found is None else found[number]
        shown = min(max_segments, len(regions.scores))
        primitives.photo(ax, backdrop.washed(0.35), size=backdrop.size)
        veil = np.zeros((*regions.labels.shape, 4), dtype=np.float32)
        for label in range(1, shown + 1):
            veil[regions.labels == label] = (*COLOURS[(label - 1) % len(COLOURS)], 0.42)
        edge = find_boundaries(np.where(regions.labels <= shown, regions.labels, 0), mode="inner")
        veil[edge & (veil[..., 3] > 0), 3] = 0.95
        ax.imshow(veil, extent=(0, width, height, 0), interpolation="nearest", zorder=1)
        for label, (y, x) in enumerate(regions.sinks[:shown], start=1):
            ax.plot(x, y, "o", ms=4, mfc="white", mec="black", mew=0.8, zorder=4)
            text = ax.text(x + 0.012 * width, y, str(label), fontsize=7, va="center", zorder=5, clip_on=True)
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        ax.set(xlim=(0, width), ylim=(height, 0))
        view = FieldView.of(field, backdrop.size, None, group)
        best = f"net inflow {regions.scores[0]:.2g} cells" if shown else "no sink of d_f in converging cells"
        count = f"{shown} of {len(regions.scores)} regions" if shown else "no region"
        used = caption(ax, primitives.escaped(view.caption()), f"{count}, best first ({best}); dots: sinks of $d_f$")
        room = max(room, used)
    result.fit(room)
    return result.figure

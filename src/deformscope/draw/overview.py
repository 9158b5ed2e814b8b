"""The overview: all views of one photo, one row per layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..backdrop import Backdrop, on_photo
from ..fields.field import OffsetField
from ..photo import Photo
from . import panels, primitives, style
from .figures import FieldsLike, as_list
from .own_settings import own_settings
from .sampling_points import INSET, Points, centres_of_boxes, inset, sampling_panel
from .sheet import caption, sheet
from .view import FieldView


@own_settings()
def overview(
    fields: FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    detection: dict | None = None,
    class_names: Sequence[str] = (),
    min_score: float = 0.5,
    group: int = 0,
    title: str = "",
) -> Figure:
    """One row per field: its kernel points (Fig. 1), d_f with divergence (Fig. 2), circles (Fig. 3), sampling
    points.

    Example:
        >>> ds.draw.overview(field, "photo.jpg").savefig("overview.png")
    """
    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    size = backdrop.size
    result = sheet(len(chosen), 4, size, width=13.0, caption=0.5, title=title)
    whole, backdrop = backdrop, backdrop.within(result.inches)
    cells = centres_of_boxes(detection or {}, min_score, size) or [(size[0] / 2, size[1] / 2)]
    for row, field in zip(result.panels, chosen, strict=True):
        view = FieldView.of(field, size, None, min(group, field.offset.shape[1] - 1))
        shown = view.on_photo(size)
        factor = view.factor(np.linalg.norm(view.vectors[:, shown], axis=-1).ravel(), 1.3)
        means = np.linalg.norm(view.vectors[:, shown].mean(axis=1), axis=-1)
        trend = primitives.nice(0.4 * min(size) / means.max()) if means.max() > 1e-6 else 1.0
        panels.kernel_mosaic(row[0], backdrop.within(result.inches / field.kernel_size[1]), view, factor, trend)
        caption(row[0], view.caption(), f"kernel points: offsets ×{factor:g}, thick: mean")
        scale = panels.feature_panel(row[1], backdrop, view)
        if detection is not None:
            primitives.boxes(row[1], detection, class_names, min_score=min_score)
        caption(row[1], f"$d_f$ ×{scale:g}; red: div < 0", beside=panels.SCALE_INCHES)
        panels.scale_arrow(row[1], view, scale)
        scale = panels.kernel_panel(row[2], backdrop, view)
        caption(row[2], f"circles of $d_k$ ×{scale:g}", panels.reach(view, size))
        told = _sampling(row[3], whole, field, cells, min(group, field.offset.shape[1] - 1), result.inches)
        caption(row[3], "sampling points", told)
    return result.figure


def _sampling(
    ax: Axes,
    backdrop: Backdrop,
    field: OffsetField,
    cells: Sequence[tuple[float, float]],
    group: int,
    inches: float,
) -> str:
    """The sampling points of all cells over the photo, or where they lie close together of the first from near."""
    points = [Points.of([field], cell, group) for cell in cells]
    window = points[0].window(backdrop.size)
    told = [] if points[0].weights is None else [f"modulation: dark 0, bright {points[0].full:g}"]
    if window.width < backdrop.size[1]:
        sampling_panel(ax, backdrop.within(inches * backdrop.size[1] / window.width), {0: points[0]}, 1, window)
        inset(ax, backdrop.within(inches * INSET), window, points[0], style.PLACES[0])
        told.insert(0, "one cell from near")
    else:
        sampling_panel(ax, backdrop.within(inches), dict(enumerate(points)), 1)
    return ", ".join(told)

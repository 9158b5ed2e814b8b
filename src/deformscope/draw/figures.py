"""The paper's figures as functions from fields and a photo to a matplotlib figure.

``fields`` is one OffsetField, or several (a list or the captured mapping): Figures 2 and 3 have one panel per field.
``photo`` is anything that ``deformscope.photo.read`` accepts; without it the figure is drawn on the network's input as
recorded. Unless that is the photo resized, ``fit`` says how the photo became the input, as in
:meth:`Placement.fitted`: ``"stretch"``, ``"crop"``, ``"pad"``… Arrows and circles are enlarged by a factor stated in
the figure; ``scale`` sets it, and ``cell_step`` = n draws every n-th cell along rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..backdrop import Backdrop, on_photo
from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.segments import Segments, segments as grow
from ..photo import Photo
from . import panels, primitives
from .panels import SCALE_INCHES, FieldsLike, FieldView, as_list
from .primitives import convergence_limit, escaped
from .sampling_points import Points, centres_of_boxes, sampling_panel
from .sheet import Sheet, row_of_panels, sheet
from .style import own_settings

COLOURS = ((0.90, 0.12, 0.10), (0.00, 0.45, 0.85), (0.95, 0.65, 0.00), (0.10, 0.60, 0.30), (0.60, 0.25, 0.75))


@own_settings()
def figure1(
    field: FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    cell_step: int | None = None,
    scale: float | None = None,
    group: int = 0,
) -> Figure:
    """Figure 1: a panel for each kernel point, arranged as the kernel, with its offsets and their mean.

    The small arrows start at the kernel point's regular place; at a factor of 1, they end where it samples.

    Example:
        >>> ds.draw.figure1(field, "photo.jpg").savefig("figure1.png")
    """
    fields = as_list(field)
    if len(fields) > 1:
        names = ", ".join(repr(several.name) for several in fields)
        raise DeformscopeError(f"field: {len(fields)} given ({names}); figure1 draws one of them, and figure2 several")
    backdrop, (one,) = on_photo(fields, photo, fit)
    view = FieldView.of(one, backdrop.size, cell_step, group)
    result = sheet(*one.kernel_size, backdrop.size, caption=0.0)
    factor, trend = _factors(view, backdrop.size, 0.35)
    factor = scale or factor
    backdrop = backdrop.within(result.inches)
    for k, ax in enumerate(result.flat()):
        panels.point_panel(ax, backdrop, view, k, factor, trend)
    foot = result.caption(
        result.panels[-1][0],
        f"{_group(view, group)} · offset of each kernel point (Δy, Δx around it)",
        f"arrows ×{factor:g}, {_thinning(view)} · thick: mean over the photo ×{trend:g}",
        columns=one.kernel_size[1],
        reserved=SCALE_INCHES,
    )
    panels.scale_arrow(result.panels[-1][-1], view, factor)
    result.fit(0.0, foot)
    return result.figure


@own_settings()
def figure2(
    fields: FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    detection: dict | None = None,
    class_names: Sequence[str] = (),
    min_score: float = 0.5,
    cell_step: int | None = None,
    scale: float | None = None,
    group: int = 0,
) -> Figure:
    """Figure 2: d_f as arrows, and a red mask where its divergence is negative; one panel per field.

    With ``detection`` (torchvision's keys, photo px), boxes with a score of at least ``min_score`` are outlined.

    Example:
        >>> found = detector("photo.jpg")[0]
        >>> figure = ds.draw.figure2(field, "photo.jpg", detection=found, class_names=detector.class_names)
        >>> figure.savefig("figure2.png")
    """
    result, backdrop, each = _row(fields, photo, fit, cell_step, group)
    for ax, view in each:
        factor = panels.feature_panel(ax, backdrop, view, scale)
        if detection is not None:
            primitives.boxes(ax, detection, class_names, min_score=min_score)
        full = f"full\N{NO-BREAK SPACE}at\N{NO-BREAK SPACE}−{convergence_limit(view.div):.2g}/cell"
        units = f"arrows: $d_f$ ×{factor:g}, {_thinning(view)} · red: divergence < 0, {full}"
        result.caption(ax, _group(view, group), units, reserved=SCALE_INCHES)
        panels.scale_arrow(ax, view, factor)
    return result.finished()


@own_settings()
def figure3(
    fields: FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    cell_step: int | None = None,
    scale: float | None = None,
    group: int = 0,
) -> Figure:
    """Figure 3: a circle with radius r = sqrt(width · height) of d_k at every cell; one panel per field.

    Example:
        >>> ds.draw.figure3(fields.matching(["*deform"]), "photo.jpg").savefig("figure3.png")     # a panel per layer
    """
    result, backdrop, each = _row(fields, photo, fit, cell_step, group)
    for ax, view in each:
        factor = panels.kernel_panel(ax, backdrop, view, scale)
        units = f"circles: radius r = √(width·height) of $d_k$, ×{factor:g}, {_thinning(view)}"
        result.caption(ax, _group(view, group), f"{units} · brighter = larger, {panels.reach(view, backdrop.size)}")
    return result.finished()


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
        own = min(group, field.offset.shape[1] - 1)
        view = FieldView.of(field, size, None, own)
        factor, trend = _factors(view, size, 0.4)
        panels.kernel_mosaic(row[0], backdrop.within(result.inches / field.kernel_size[1]), view, factor, trend)
        result.caption(row[0], view.caption(), f"kernel points: offsets ×{factor:g}, thick: mean")
        scale = panels.feature_panel(row[1], backdrop, view)
        if detection is not None:
            primitives.boxes(row[1], detection, class_names, min_score=min_score)
        result.caption(row[1], f"$d_f$ ×{scale:g}; red: div < 0", reserved=SCALE_INCHES)
        panels.scale_arrow(row[1], view, scale)
        scale = panels.kernel_panel(row[2], backdrop, view)
        result.caption(row[2], f"circles of $d_k$ ×{scale:g}", panels.reach(view, size))
        points = {number: Points.of([field], cell, own) for number, cell in enumerate(cells)}
        window = points[0].window(size)
        zoomed = window.width < size[1]
        sampling_panel(row[3], whole, result.inches, {0: points[0]} if zoomed else points, 1, window)
        modulation = "" if points[0].weights is None else f"modulation: dark 0, bright {points[0].full:g}"
        result.caption(row[3], "sampling points", ", ".join(filter(None, ["one cell, enlarged" * zoomed, modulation])))
    return result.figure


@own_settings()
def growth(
    fields: Mapping[str, OffsetField],
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    cell_step: int | None = None,
    group: int = 0,
    title: str = "",
) -> Figure:
    """One layer during training, a column per step: d_f and divergence (Fig. 2) above, circles (Fig. 3) below.

    ``fields`` are those of one layer, by column captions ("after 500 steps"), in order. All columns have
    the scales of the last, so that lengths can be compared. Raises DeformscopeError for no fields.

    Example:
        >>> start = dataclasses.replace(field, offset=torch.zeros_like(field.offset))
        >>> ds.draw.growth({"before training": start, "after it": field}, "photo.jpg").savefig("growth.png")
    """
    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    size = backdrop.size
    views = [FieldView.of(field, size, cell_step, group) for field in chosen]
    last = views[-1]
    shown = last.on_photo(size)
    arrows = last.factor(np.linalg.norm(last.d_f[shown], axis=1), 1.6)
    circles = last.factor(np.abs(last.radii[shown]), 1.3)
    limit = convergence_limit(last.div)
    # For the width of a page: small panels, units stated once.
    width = min(3.2 * len(views), 13.0)
    result = sheet(2, len(views), size, width=width, caption=0.42, title=title)
    backdrop = backdrop.within(result.inches)
    for column, (name, view) in enumerate(zip(fields, views, strict=True)):
        above, below = result.panels[0][column], result.panels[1][column]
        panels.feature_panel(above, backdrop, view, arrows, limit=limit)
        panels.kernel_panel(below, backdrop, view, circles)
        result.caption(above, escaped(name), f"$d_f$ ×{arrows:g}; red: divergence < 0, full at −{limit:.2g}/cell")
        result.caption(below, f"circles of $d_k$ ×{circles:g}", panels.reach(view, size))
    return result.figure


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

    They are numbered by score. ``found`` are the segments of the fields if known already; otherwise they are computed.

    Example:
        >>> ds.draw.segments(field, "photo.jpg", max_segments=3).savefig("segments.png")
    """
    from skimage.segmentation import find_boundaries

    result, backdrop, each = _row(fields, photo, fit, None, group)
    height, width = backdrop.size
    for number, (ax, view) in enumerate(each):
        regions = grow(view.field, group) if found is None else found[number]
        shown = min(max_segments, len(regions.scores))
        primitives.photo(ax, backdrop, 0.35)
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
        best = f"net inflow {regions.scores[0]:.2g} cells" if shown else "no sink of d_f in converging cells"
        count = f"{shown} of {len(regions.scores)} regions" if shown else "no region"
        result.caption(ax, escaped(view.caption()), f"{count}, best first ({best}); dots: sinks of $d_f$")
    return result.finished()


def _row(
    fields: FieldsLike, photo: Photo | None, fit: str | None, cell_step: int | None, group: int
) -> tuple[Sheet, Backdrop, Iterator[tuple[Axes, FieldView]]]:
    """A sheet with a panel per field, the photo at their size, and each panel with its view."""
    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    result = row_of_panels(len(chosen), backdrop.size)
    views = [FieldView.of(field, backdrop.size, cell_step, group) for field in chosen]
    return result, backdrop.within(result.inches), zip(result.flat(), views, strict=False)


def _factors(view: FieldView, size: tuple[int, int], longest: float) -> tuple[float, float]:
    """Readable factors of the offsets and of their means; the longest mean takes that part of the shorter side."""
    vectors = view.vectors[:, view.on_photo(size)]
    most = float(np.linalg.norm(vectors.mean(axis=1), axis=-1).max())
    trend = primitives.nice(longest * min(size) / most) if most > 1e-6 else 1.0
    return view.factor(np.linalg.norm(vectors, axis=-1).ravel(), 1.3), trend


def _group(view: FieldView, group: int) -> str:
    groups = view.field.offset.shape[1]
    return escaped(view.caption()) + (f" · offset group {group + 1} of {groups}" if groups > 1 else "")


def _thinning(view: FieldView) -> str:
    step = view.cell_step
    if step == 1:
        return "every cell"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(step % 10 if step % 100 // 10 != 1 else 0, "th")
    return f"every {step}{ending} cell"

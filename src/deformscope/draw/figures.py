"""The paper's figures as functions from fields and a photo to a matplotlib figure.

``fields`` is one OffsetField, or several (a list or the captured mapping): Figures 2 and 3 have one panel per field.
``photo`` is anything that ``deformscope.photo.read`` accepts; without it the figure is drawn on the network's input as
recorded. Where the input was made of the photo by another step than a plain resize, ``fit`` says which, as in
:meth:`Placement.fitted`: ``"stretch"``, ``"crop"``, ``"pad"``… Arrows and circles are enlarged by a factor that is
stated in the figure; ``scale`` sets it, and ``cell_step`` = n draws every n-th cell along rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from ..backdrop import on_photo
from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..photo import Photo
from . import panels, primitives
from .own_settings import own_settings
from .sheet import WIDEST, Sheet, caption, sheet
from .view import FieldView

FieldsLike = OffsetField | Mapping[str, OffsetField] | Iterable[OffsetField]
"""One field, or several."""


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

    The small arrows start at the kernel point's regular place; enlarged by 1, they end where it samples.

    Example:
        >>> ds.draw.figure1(field, "photo.jpg").savefig("figure1.png")
    """
    fields = as_list(field)
    if len(fields) > 1:
        names = ", ".join(repr(several.name) for several in fields)
        raise DeformscopeError(f"field: {len(fields)} given ({names}); figure1 draws one of them, and figure2 several")
    backdrop, (one,) = on_photo(fields, photo, fit)
    view = FieldView.of(one, backdrop.size, cell_step, group)
    rows, columns = one.kernel_size
    result = sheet(rows, columns, backdrop.size, caption=0.0)
    shown = view.on_photo(backdrop.size)
    factor = scale or view.factor(np.linalg.norm(view.vectors[:, shown], axis=-1).ravel(), 1.3)
    means = np.linalg.norm(view.vectors[:, shown].mean(axis=1), axis=-1)
    trend = primitives.nice(0.35 * min(backdrop.size) / means.max()) if means.max() > 1e-6 else 1.0
    shrunk = backdrop.within(result.inches)
    for k, ax in enumerate(result.flat()):
        panels.point_panel(ax, shrunk, view, k, factor, trend)
    foot = caption(
        result.panels[-1][0],
        f"{_group(view, group)} · offset of each kernel point (Δy, Δx around it)",
        f"arrows ×{factor:g}, {_thinning(view)} · thick: mean over the photo ×{trend:g}",
        columns=columns,
        beside=panels.SCALE_INCHES,
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
    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    result = row_of_panels(len(chosen), backdrop.size)
    backdrop = backdrop.within(result.inches)
    room = 0.0
    for ax, field in zip(result.flat(), chosen, strict=False):
        view = FieldView.of(field, backdrop.size, cell_step, group)
        factor = panels.feature_panel(ax, backdrop, view, scale)
        if detection is not None:
            primitives.boxes(ax, detection, class_names, min_score=min_score)
        limit = primitives.convergence_limit(view.div)
        used = caption(
            ax,
            _group(view, group),
            f"arrows: $d_f$ ×{factor:g}, {_thinning(view)} · red: divergence < 0, "
            f"full\N{NO-BREAK SPACE}at\N{NO-BREAK SPACE}−{limit:.2g}/cell",
            beside=panels.SCALE_INCHES,
        )
        room = max(room, used)
        panels.scale_arrow(ax, view, factor)
    result.fit(room)
    return result.figure


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
    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    result = row_of_panels(len(chosen), backdrop.size)
    backdrop = backdrop.within(result.inches)
    room = 0.0
    for ax, field in zip(result.flat(), chosen, strict=False):
        view = FieldView.of(field, backdrop.size, cell_step, group)
        factor = panels.kernel_panel(ax, backdrop, view, scale)
        used = caption(
            ax,
            _group(view, group),
            f"circles: radius r = √(width·height) of $d_k$, ×{factor:g}, {_thinning(view)} · "
            f"brighter = larger, {panels.reach(view, backdrop.size)}",
        )
        room = max(room, used)
    result.fit(room)
    return result.figure


def as_list(fields: FieldsLike) -> list[OffsetField]:
    """The fields as a list. Raises DeformscopeError if there is none, and for what is no OffsetField."""
    if isinstance(fields, OffsetField):
        return [fields]
    given: Any = fields
    attention = given.attention if isinstance(given, Fields) and not given else {}
    if isinstance(given, Mapping):
        given = [*given.values(), *attention.values()]
    chosen = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, Tensor)) else [given]
    if not chosen:
        raise DeformscopeError("fields: none given; expected at least one OffsetField")
    for one in chosen:
        if isinstance(one, AttentionField):
            encoder = "fields.moments.encoder_fields(attention) gives fields of it"
            queries = "draw.queries(attention, photo, queries) draws it"
            raise DeformscopeError(
                f"fields: {one.name!r} is deformable attention; {encoder if one.is_dense else queries}"
            )
        if isinstance(one, Tensor):
            raise DeformscopeError(
                f"fields: a tensor of shape {tuple(one.shape)}; make a field of raw offsets with "
                "ds.OffsetField.from_tensor(offset, kernel_size=3, reduction=16)"
            )
        if not isinstance(one, OffsetField):
            raise DeformscopeError(
                f"fields: {type(one).__name__} given; expected an OffsetField, a list of them or the captured fields"
            )
    return chosen


def row_of_panels(count: int, size: tuple[int, int]) -> Sheet:
    """Panels in rows, as evenly as they go: at most four portrait photos per row, or three landscape ones, so that they
    are large enough to read; one of the widest."""
    rows = -(-count // (4 if size[0] > size[1] else 3 if size[0] > WIDEST * size[1] else 1))
    columns = -(-count // rows)
    result = sheet(rows, columns, size)
    for ax in result.flat()[count:]:
        ax.set_axis_off()
    return result


def _group(view: FieldView, group: int) -> str:
    groups = view.field.offset.shape[1]
    return primitives.escaped(view.caption()) + (f" · offset group {group + 1} of {groups}" if groups > 1 else "")


def _thinning(view: FieldView) -> str:
    step = view.cell_step
    if step == 1:
        return "every cell"
    ending = {1: "st", 2: "nd", 3: "rd"}.get(step % 10 if step % 100 // 10 != 1 else 0, "th")
    return f"every {step}{ending} cell"

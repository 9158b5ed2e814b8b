"""One layer on one photo during training, from zero offsets on (Section 3 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from ..backdrop import on_photo
from ..fields.field import OffsetField
from ..photo import Photo
from . import panels, primitives
from .figures import as_list
from .own_settings import own_settings
from .sheet import caption, sheet
from .view import FieldView


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
    """One column per time in training: d_f and its divergence (Fig. 2) above, circles of d_k (Fig. 3) below.

    ``fields`` are those of one layer, by the captions of the columns ("after 500 steps"), in order. All columns have
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
    limit = primitives.convergence_limit(last.div)
    # For the width of a page: small panels, units stated once.
    width = min(3.2 * len(views), 13.0)
    result = sheet(2, len(views), size, width=width, caption=0.42, title=title)
    backdrop = backdrop.within(result.inches)
    for column, (name, view) in enumerate(zip(fields, views, strict=True)):
        above, below = result.panels[0][column], result.panels[1][column]
        panels.feature_panel(above, backdrop, view, arrows, limit=limit)
        panels.kernel_panel(below, backdrop, view, circles)
        caption(above, primitives.escaped(name), f"$d_f$ ×{arrows:g}; red: divergence < 0, full at −{limit:.2g}/cell")
        caption(below, f"circles of $d_k$ ×{circles:g}", panels.reach(view, size))
    return result.figure

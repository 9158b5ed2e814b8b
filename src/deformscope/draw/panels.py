"""Panels of the paper's figures: a field in photo px, and how it is drawn on axes over the photo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.quiver import Quiver
from torch import Tensor

from ..backdrop import Backdrop, washed
from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from ..fields.field import OffsetField, cell_text
from ..fields.fields import Fields
from ..fields.viewpoint import divergence, extent, split
from . import primitives, style
from .primitives import inches, nice
from .text import drawable

WASH = 0.3
MOSAIC_GAP = 0.036
"""Gap between the photos of a mosaic, relative to their width."""
SCALE_INCHES = 1.35
"""Room for the scale arrow at the right of the first line of a caption."""
MOST_ACROSS = 36
"""Largest number of arrows along a panel's longer side, if no step is given."""
CLOSE = 0.4
"""Boxes shorter than this share of the photo, in both directions, are enlarged."""
AROUND = 2.4
"""Sides of an enlarged part over those of its box."""
LEAST_PART = 0.2
"""Smallest part of the photo to show; a smaller one would be unrecognisable."""


FieldsLike = OffsetField | Mapping[str, OffsetField] | Iterable[OffsetField]
"""One field, or several."""


def as_list(fields: FieldsLike) -> list[OffsetField]:
    """The fields as a list. Raises DeformscopeError without any, and for anything but OffsetFields."""
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


@dataclass(frozen=True)
class FieldView:
    """The field of one image and offset group, (y, x) in photo px, for m of its cells."""

    field: OffsetField
    starts: np.ndarray
    """[k m 2]: regular place of each kernel point."""
    vectors: np.ndarray
    """[k m 2]: offsets."""
    centres: np.ndarray
    """[m 2]: centres of the regular kernels."""
    d_f: np.ndarray
    """[m 2]: d_f, the feature-map viewpoint."""
    div: np.ndarray
    """[h w], 1/cell: divergence at all cells."""
    radii: np.ndarray
    """[m], px: sqrt(width · height) of d_k; −sqrt(|width · height|) if the kernel is drawn together in one direction or
    both."""
    corners: tuple[float, float, float, float]
    """(top, bottom, left, right) px edges of the map of output cells."""
    spacing: float
    """Px between the m cells."""
    cell_step: int
    """The m cells are every n-th one along rows and columns."""

    @classmethod
    def of(cls, field: OffsetField, size: tuple[int, int], cell_step: int | None = None, group: int = 0) -> FieldView:
        """View ``field`` (n = 1) over a photo of ``size`` (h, w), every ``cell_step``-th cell (default: as fits)."""
        n, groups, _, h, w, _ = field.offset.shape
        if n != 1:
            raise DeformscopeError(f"field {field.name!r} of {n} images: expected one; take field.select(i)")
        if not 0 <= group < groups:
            raise DeformscopeError(f"group={group}: expected below {groups}, the offset groups of {field.name!r}")
        if cell_step is not None and cell_step < 1:
            raise DeformscopeError(f"cell_step={cell_step}: expected a whole number from 1")
        offset = field.offset[:, group : group + 1]
        (d_f, d_k), kernel = split(offset), field.kernel_size
        per_cell = np.array(field.pixels_per_cell())
        between = float(np.abs(per_cell * field.stride).mean())
        step = cell_step or max(1, round(max(size) / (between * MOST_ACROSS)))
        rows, columns = (np.arange((length - 1) % step // 2, length, step) for length in (h, w))
        pixels = field.to_pixels(field.regular_points()).numpy().astype(float)
        middles = field.to_pixels(field.centres()).numpy().astype(float)
        half = per_cell * field.stride / 2
        edges = [(middles[0, 0, axis] - half[axis], middles[-1, -1, axis] + half[axis]) for axis in (0, 1)]

        def thin(cells: np.ndarray) -> np.ndarray:
            return cells[..., rows[:, None], columns, :].reshape(*cells.shape[:-3], -1, cells.shape[-1])

        high, wide = (side[0, 0].numpy() * float(np.sqrt(np.abs(per_cell).prod())) for side in extent(d_k, kernel))
        spread = np.sqrt(np.abs(high * wide)) * np.where(np.minimum(high, wide) < 0, -1, 1)
        return cls(
            field=field,
            starts=thin(pixels),
            vectors=thin(offset[0, 0].numpy() * per_cell),
            centres=thin(middles),
            d_f=thin(d_f[0, 0, 0].numpy() * per_cell),
            div=divergence(d_f[0, 0, 0], field.stride).numpy(),
            radii=thin(spread[..., None])[..., 0],
            corners=(*edges[0], *edges[1]),
            spacing=between * step,
            cell_step=step,
        )

    def on_photo(self, size: tuple[int, int]) -> np.ndarray:
        """Whether each of the m cells is on the photo, not in padding."""
        y, x = self.centres.T
        return (y >= 0) & (y <= size[0]) & (x >= 0) & (x <= size[1])

    def factor(self, lengths: np.ndarray, target: float) -> float:
        """A readable factor that makes the 95th percentile of ``lengths`` (px) about ``target`` times the spacing."""
        finite = lengths[np.isfinite(lengths)]
        long = float(np.percentile(finite, 95)) if finite.size else 0.0
        return nice(target * self.spacing / long) if long > 1e-6 else 1.0

    def reach(self, size: tuple[int, int]) -> tuple[float, float]:
        """The largest radius on the photo of kernels that are spread, and of those that are contracted; 0 for none."""
        shown = self.radii[self.on_photo(size)]
        shown = shown[np.isfinite(shown)]
        return float(shown.max(initial=0.0)), float(-shown.min(initial=0.0))

    def caption(self) -> str:
        """The layer, and photo px per cell."""
        name = drawable(self.field.name) or "deformable convolution"
        return f"{name} · {cell_text(self.field)}/cell"


@dataclass(frozen=True)
class Window:
    """The part of a photo that a panel shows, with the photo's aspect ratio; px."""

    top: float
    left: float
    height: float
    width: float

    @classmethod
    def around(
        cls,
        box: tuple[float, float, float, float] | None,
        size: tuple[int, int],
        close: float = CLOSE,
        least_part: float = LEAST_PART,
    ) -> Window:
        """The surroundings of a small box (xyxy px), or the whole photo of ``size`` (h, w)."""
        height, width = size
        if box is None:
            return cls(0, 0, height, width)
        x0, y0, x1, y1 = box
        share = max((x1 - x0) / width, (y1 - y0) / height)
        if share > close:
            return cls(0, 0, height, width)
        part = min(1.0, max(AROUND * share, least_part))
        h, w = part * height, part * width
        top = min(max((y0 + y1) / 2 - h / 2, 0), height - h)
        left = min(max((x0 + x1) / 2 - w / 2, 0), width - w)
        return cls(top, left, h, w)

    def apply(self, ax: Axes) -> None:
        """Let the axes show it."""
        ax.set(xlim=(self.left, self.left + self.width), ylim=(self.top + self.height, self.top))


def point_panel(ax: Axes, backdrop: Backdrop, view: FieldView, k: int, factor: float, trend: float) -> None:
    """A panel of Figure 1: the offsets Δp_k of kernel point ``k`` (× factor) and their mean (× trend) in the middle."""
    primitives.photo(ax, backdrop, WASH)
    _point_arrows(ax, view, k, factor, trend, backdrop.size)
    rows, columns = view.field.kernel_size
    place = f"({k // columns - (rows - 1) / 2:+g}, {k % columns - (columns - 1) / 2:+g})".replace("-", "−")
    text = ax.text(0.02, 0.97, f"k={k}  {place}", transform=ax.transAxes, va="top", fontsize=7, color="black")
    text.set_path_effects([withStroke(linewidth=2, foreground="white")])


def kernel_mosaic(ax: Axes, backdrop: Backdrop, view: FieldView, factor: float, trend: float) -> None:
    """A small Figure 1: all kernel points on the same axes, each over its own copy of the photo, arranged as the
    kernel."""
    height, width = backdrop.size
    rows, columns = view.field.kernel_size
    tile = washed(backdrop.pixels, WASH)
    gap = max(1, round(MOSAIC_GAP * tile.shape[1]))
    framed = np.pad(tile, ((0, gap), (0, gap), (0, 0)), constant_values=255)
    tiled = np.tile(framed, (rows, columns, 1))[:-gap, :-gap]
    across = width / tile.shape[1]
    down = height / tile.shape[0]
    primitives.photo(ax, tiled, size=(round(tiled.shape[0] * down), round(tiled.shape[1] * across)))
    for k in range(rows * columns):
        row, column = divmod(k, columns)
        corner = (row * (tile.shape[0] + gap) * down, column * (tile.shape[1] + gap) * across)
        frame = Rectangle(corner[::-1], width, height, transform=ax.transData)
        for artist in _point_arrows(ax, view, k, factor, trend, backdrop.size, corner, small=True):
            artist.set_clip_path(frame)


def _point_arrows(
    ax: Axes,
    view: FieldView,
    k: int,
    factor: float,
    trend: float,
    size: tuple[int, int],
    corner: tuple[float, float] = (0.0, 0.0),
    *,
    small: bool = False,
) -> list[Quiver]:
    shown = view.on_photo(size)
    thin = primitives.arrows(
        ax, view.starts[k][shown] + corner, view.vectors[k][shown] * factor, width=0.4 if small else 0.7, halo=False
    )
    mean = view.vectors[k][shown].mean(axis=0) * trend
    middle = np.array([[size[0] / 2, size[1] / 2]]) - mean / 2 + corner
    thick = primitives.arrows(ax, middle, mean[None], color=style.TREND, width=1.8 if small else 4.0, halo=False)
    thick.set(path_effects=[withStroke(linewidth=0.8 if small else 1.8, foreground="black")], zorder=5)
    return [thin, thick]


def feature_panel(
    ax: Axes, backdrop: Backdrop, view: FieldView, factor: float | None = None, *, limit: float | None = None
) -> float:
    """A panel of Figure 2: d_f (× factor) as arrows and the negative divergence as a red mask; returns the factor."""
    primitives.photo(ax, backdrop, WASH * 0.6)
    shown = view.on_photo(backdrop.size)
    scale = factor or view.factor(np.linalg.norm(view.d_f[shown], axis=1), 1.6)
    full = limit or primitives.convergence_limit(view.div)
    primitives.divergence_mask(ax, view.div, view.corners, limit=full or None)
    primitives.arrows(ax, view.centres[shown], view.d_f[shown] * scale, color="#10243e", width=0.9)
    return scale


def kernel_panel(ax: Axes, backdrop: Backdrop, view: FieldView, factor: float | None = None) -> float:
    """A panel of Figure 3: a circle with radius r = sqrt(width · height) of d_k, × factor, at every cell; returns the
    factor."""
    primitives.photo(ax, backdrop, WASH)
    shown = view.on_photo(backdrop.size)
    # Attention, which has no regular grid, looks far beyond the cells of a fine map from everywhere: circles that
    # overlap as a kernel's do would hide the photo.
    scale = factor or view.factor(np.abs(view.radii[shown]), 1.3 if any(view.field.dilation) else 0.6)
    primitives.circles(ax, view.centres[shown], view.radii[shown] * scale, values=view.radii[shown])
    return scale


def reach(view: FieldView, size: tuple[int, int]) -> str:
    """The largest radii of Figure 3, and the meaning of green."""
    spread, together = view.reach(size)
    words = f"r up to {spread:.3g} px" if spread or not together else "no kernel is spread"
    return words + (f"; green: drawn together, |r| up to {together:.3g} px" if together else "")


def scale_arrow(ax: Axes, view: FieldView, factor: float) -> None:
    """The scale at the right below the panel: the drawn length of a number of cells."""
    if ax.get_anchor() == "NW":  # of a very tall photo; it would cross the caption
        return
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    height, width = abs(bottom - top), abs(right - left)
    cell = float(np.mean(view.field.pixels_per_cell())) * factor
    tall, across = inches(ax)
    # The longest readable number of cells that leaves room for its label.
    count = nice(0.45 * width / across / cell)
    level = height * (1 + 0.115 / tall)
    arrow = primitives.arrows(
        ax, np.array([[level, width - count * cell]]), np.array([[0, count * cell]]), color=style.INK, halo=False
    )
    arrow.set_clip_on(False)
    ax.text(
        width - count * cell - 0.01 * width,
        level,
        f"{count:g} cell{'s' if count > 1 else ''}",
        ha="right",
        va="center",
        fontsize=7,
        color=style.INK,
        clip_on=False,
    )

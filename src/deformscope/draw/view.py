"""A field for figures: numpy arrays in photo px, with fewer cells, so that arrows do not overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DeformscopeError
from ..fields.field import OffsetField, cell_text
from ..fields.viewpoint import divergence, extent, split
from .primitives import nice
from .text import drawable

MOST_ACROSS = 36
"""Largest number of arrows along a panel's longer side, if no step is given."""


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
        """Whether each of the m cells lies on the photo, and not in padding."""
        y, x = self.centres.T
        return (y >= 0) & (y <= size[0]) & (x >= 0) & (x <= size[1])

    def factor(self, lengths: np.ndarray, target: float) -> float:
        """A readable factor that makes the 95th percentile of ``lengths`` (px) about ``target`` times the spacing."""
        finite = lengths[np.isfinite(lengths)]
        long = float(np.percentile(finite, 95)) if finite.size else 0.0
        return nice(target * self.spacing / long) if long > 1e-6 else 1.0

    def reach(self, size: tuple[int, int]) -> tuple[float, float]:
        """The largest radius of the kernels on the photo that are spread, and of those drawn together; 0 for none."""
        shown = self.radii[self.on_photo(size)]
        shown = shown[np.isfinite(shown)]
        return float(shown.max(initial=0.0)), float(-shown.min(initial=0.0))

    def caption(self) -> str:
        """The layer, and photo px per cell."""
        name = drawable(self.field.name) or "deformable convolution"
        return f"{name} · {cell_text(self.field)}/cell"

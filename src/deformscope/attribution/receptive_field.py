"""Effective receptive field of one output: E(p) = Σ_c |∂y/∂I_c(p)|, and how it lies on the photo (Luo et al., 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError
from ..fields.field import Placement, Point

Array = np.ndarray


@dataclass(frozen=True)
class ReceptiveField:
    """How strongly each pixel of the photo moves the explained output. All places and lengths are in photo px.

    What lies in the padding around the photo is left out of all figures. They are NaN where the gradient is zero
    everywhere.

    Example:
        >>> why = ds.explain(detector, "photo.jpg")
        >>> 0 < why.receptive_field.share_in(why.box) <= 1
        True
    """

    gradient: Float[Tensor, "h w"]
    """E(p) at every px of the network's input, padding included."""
    placement: Placement
    """How the photo lies in the network's input."""

    @cached_property
    def mass(self) -> Float[Array, "h w"]:
        """E at the network's px, zero outside of the photo, divided by its sum."""
        y, x = self._axes
        height, width = self.placement.size
        inside = ((y >= 0) & (y <= height))[:, None] & ((x >= 0) & (x <= width))
        values = np.where(inside, self.gradient.double().numpy(), 0.0)
        total = values.sum()
        return values / total if total > 0 else np.full(values.shape, np.nan)

    @cached_property
    def _axes(self) -> tuple[Array, Array]:
        """y of each row's and x of each column's middle, photo px."""
        h, w = self.gradient.shape
        (down, across), (top, left) = self.placement.scale, self.placement.shift
        return (np.arange(h) + 0.5 - top) / down, (np.arange(w) + 0.5 - left) / across

    @cached_property
    def centre(self) -> Point:
        """Centre of mass (y, x)."""
        y, x = self._axes
        return float(self.mass.sum(axis=1) @ y), float(self.mass.sum(axis=0) @ x)

    def radius(self, share: float) -> float:
        """Radius of the circle around :attr:`centre` that holds this share (0..1) of the mass."""
        if not 0 < share <= 1:
            raise DeformscopeError(f"share={share}: expected a share of the mass, above 0 and at most 1")
        y, x = self._axes
        distance = np.hypot((y - self.centre[0])[:, None], x - self.centre[1]).ravel()
        if not np.isfinite(distance).all():
            return float("nan")
        order = np.argsort(distance)
        held = np.cumsum(self.mass.ravel()[order])
        last = min(int(np.searchsorted(held, share - 1e-12)), len(order) - 1)
        return float(distance[order[last]])

    def share_in(self, region: Sequence[float] | Tensor | Array) -> float:
        """Share of the mass inside a box (xyxy) or a mask (bool [h w] of the photo)."""
        return float(self.mass[self._covered(region)].sum())

    def over_chance(self, region: Sequence[float] | Tensor | Array) -> float:
        """:meth:`share_in` over the share of the photo that the region covers: 1 where px count alike everywhere."""
        covered, on_photo = self._covered(region), self._covered((0, 0, *self.placement.size[::-1]))
        return self.share_in(region) / max(float(covered.sum() / on_photo.sum()), 1e-12)

    def off_centre(self, box: Sequence[float] | Tensor) -> float:
        """Distance from the centre of mass to the box's (xyxy), in units of the square root of the box's area."""
        x0, y0, x1, y1 = (float(value) for value in box)
        distance = np.hypot(self.centre[0] - (y0 + y1) / 2, self.centre[1] - (x0 + x1) / 2)
        return float(distance / max((x1 - x0) * (y1 - y0), 1e-12) ** 0.5)

    def heatmap(self, step: int = 1) -> Float[Array, "h w"]:
        """E resampled to every ``step``-th row and column of the photo, divided by its maximum."""
        return on_photo(torch.from_numpy(self.mass), self.placement, step)

    def level(self, share: float, heat: Float[Array, "h w"]) -> float:
        """The value of a map such as :meth:`heatmap` above which lies this share of its sum: a contour's level."""
        values = np.sort(heat, axis=None)[::-1]
        held = np.cumsum(values, dtype=np.float64)
        return float(values[min(int(np.searchsorted(held, share * held[-1])), len(values) - 1)])

    def _covered(self, region: Sequence[float] | Tensor | Array) -> Array:
        """Which of the network's px have their middle in the region [h w]."""
        y, x = self._axes
        values = np.asarray(region.cpu() if isinstance(region, Tensor) else region)
        if values.shape == (4,):
            x0, y0, x1, y1 = values
            return ((y >= y0) & (y <= y1))[:, None] & ((x >= x0) & (x <= x1))
        if values.shape != self.placement.size:
            raise DeformscopeError(
                f"region of shape {values.shape}: expected a box (4 numbers, xyxy) or a mask of the photo, "
                f"{self.placement.size}"
            )
        rows, columns = np.floor(y).astype(int), np.floor(x).astype(int)
        on = [(place >= 0) & (place < size) for place, size in zip((rows, columns), values.shape, strict=True)]
        covered = np.zeros((len(y), len(x)), dtype=bool)
        covered[np.ix_(*on)] = values.astype(bool)[np.ix_(rows[on[0]], columns[on[1]])]
        return covered


def on_photo(map: Float[Tensor, "h w"], placement: Placement, step: int = 1) -> Float[Array, "height width"]:
    """A map over the network's px, resampled (bilinear) to every ``step``-th of the photo's px and divided by its
    largest magnitude."""
    height, width = placement.size
    y, x = (
        ((torch.arange(step // 2, size, step, dtype=torch.float64) + 0.5) * scale + shift) * 2 / cells - 1
        for size, scale, shift, cells in zip((height, width), placement.scale, placement.shift, map.shape, strict=True)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
    resampled = F.grid_sample(map.double()[None, None], grid, padding_mode="border", align_corners=False)[0, 0]
    largest = float(resampled.abs().max())
    return (resampled / largest if largest > 0 else resampled).float().numpy()

"""d_f, divergence and the extent of d_k of a field on a photo, as numpy maps of its cells, in photo px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float

from ..errors import DeformscopeError
from .field import OffsetField
from .viewpoint import divergence, extent, split

Array = np.ndarray


@dataclass(frozen=True)
class CellMaps:
    """One offset group of a field on a photo, or a null in its place. Cell (y, x) lies at origin + step · (y, x).

    Cells outside the photo (padding) are left out.
    """

    d_f: Float[Array, "h w 2"]
    """d_f: the feature-map viewpoint, (dy, dx) in photo px."""
    div: Float[Array, "h w"]
    """Divergence of d_f, 1/cell; for a null that is not a field, a map that is lower where objects are expected."""
    height: Float[Array, "h w"]
    width: Float[Array, "h w"]
    """Extent of d_k in photo px, without that of the regular grid."""
    origin: tuple[float, float]
    step: tuple[float, float]
    """(y, x), photo px."""
    regular: tuple[float, float] = (0.0, 0.0)
    """Height and width of the regular grid of the kernel, photo px."""

    @classmethod
    def of(cls, field: OffsetField, group: int = 0) -> CellMaps:
        """The maps of a field of one image (n = 1)."""
        n, groups, _, h, w, _ = field.offset.shape
        if n != 1 or not 0 <= group < groups:
            raise DeformscopeError(
                f"field {field.name!r} of {n} images and {groups} groups, group={group}: expected one image "
                "(take field.select(i)) and a group it has"
            )
        offset = field.offset[:, group : group + 1].double().cpu()
        d_f, d_k = split(offset)
        high, wide = extent(d_k, field.kernel_size)
        scale = np.array(field.pixels_per_cell())
        corner = field.to_pixels(field.centres().double()).cpu().numpy()
        step = np.abs(scale) * field.stride
        size = field.placement().size
        rows, columns = (
            np.flatnonzero((line > -step[axis] / 2) & (line < size[axis] + step[axis] / 2))
            for axis, line in ((0, corner[:, 0, 0]), (1, corner[0, :, 1]))
        )
        if not (rows.size and columns.size):
            raise DeformscopeError(f"field {field.name!r}: none of its {h}×{w} cells lies on the photo")
        window = np.ix_(rows, columns)
        shift = d_f[0, 0, 0]
        return cls(
            d_f=shift.numpy()[window] * scale,
            div=divergence(shift, field.stride).numpy()[window],
            height=high[0, 0].numpy()[window] * abs(scale[0]),
            width=wide[0, 0].numpy()[window] * abs(scale[1]),
            origin=(float(corner[rows[0], 0, 0]), float(corner[0, columns[0], 1])),
            step=(float(step[0]), float(step[1])),
            regular=(
                float(abs(scale[0]) * field.dilation[0] * (field.kernel_size[0] - 1)),
                float(abs(scale[1]) * field.dilation[1] * (field.kernel_size[1] - 1)),
            ),
        )

    @property
    def radius(self) -> Float[Array, "h w"]:
        """sqrt(width · height), px; negative extents count as zero."""
        return np.sqrt(np.clip(self.height, 0, None) * np.clip(self.width, 0, None))

    def centres(self) -> Float[Array, "h w 2"]:
        """Centres of the cells, (y, x) photo px."""
        return self.to_photo(lattice(self.div.shape))

    def to_photo(self, cells: Float[Array, "*points 2"]) -> Float[Array, "*points 2"]:
        """Cells (y, x) to photo px (y, x)."""
        return cells * np.array(self.step) + np.array(self.origin)

    def to_cells(self, points: Float[Array, "*points 2"]) -> Float[Array, "*points 2"]:
        """Photo px (y, x) to cells (y, x)."""
        return (points - np.array(self.origin)) / np.array(self.step)

    def at(self, values: Float[Array, "h w"], points: Float[Array, "*points 2"]) -> Float[Array, "*points"]:
        """Values of a map of these cells at places (y, x) px: bilinear, constant beyond the border."""
        return sample(values, self.to_cells(points))


def sample(values: Float[Array, "h w"], cells: Float[Array, "*points 2"]) -> Float[Array, "*points"]:
    """Bilinear interpolation at places (y, x) in cells."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(values, np.moveaxis(cells, -1, 0), order=1, mode="nearest")


def lattice(shape: tuple[int, int], per_cell: int = 1) -> Float[Array, "rows columns 2"]:
    """``per_cell`` × ``per_cell`` places in each cell of a map of ``shape`` (h, w); (y, x) in cells."""
    y, x = ((np.arange(length * per_cell) + 0.5) / per_cell - 0.5 for length in shape)
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


def ends(maps: Sequence[CellMaps], starts: Float[Array, "m 2"]) -> Float[Array, "s m 2"]:
    """Where the places ``starts`` ((y, x) in cells) end when they follow d_f of each of ``maps``, all of one shape; see
    :func:`follow`."""
    return follow(np.stack([one.d_f / np.array(one.step) for one in maps]), starts)


AT_ONCE = 32_768
"""Number of places that are followed together, as many as fit the processor's caches."""


def follow(d_f: Float[Array, "*s h w 2"], starts: Float[Array, "m 2"], most: int = 64) -> Float[Array, "*s m 2"]:
    """Follow each of the fields ``d_f`` (dy, dx, in its own cells) from ``starts`` to rest, in at most ``most`` steps.

    A step is 0.6 times the vector, at most 0.6 cell, so that it does not jump over a sink (it settles where the field
    contracts by less than three times its own length). The places stay on the map.
    """
    # Complex numbers interpolate both components at once; this loop takes most of the time of a photo.
    step = 0.6 * (d_f[..., 0] + 1j * d_f[..., 1])
    step *= np.minimum(1, 0.6 / np.maximum(np.abs(step), 1e-12))
    several = step.reshape(-1, *step.shape[-2:])
    block = max(1, AT_ONCE // max(len(starts), 1))
    found = [_settled(several[i : i + block], starts, most) for i in range(0, len(several), block)]
    return np.concatenate(found).reshape(*d_f.shape[:-3], len(starts), 2)


def _settled(step: Complex[Array, "s h w"], starts: Float[Array, "m 2"], most: int) -> Float[Array, "s m 2"]:
    s, h, w = step.shape
    padded = np.pad(step, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here, right, below = padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1]
    # Bilinear within a cell: here + across · a + down · (b + across · c), with the four numbers side by side in memory.
    twist = padded[:, 1:, 1:] - below - (right - here)
    corners = np.stack([here, right - here, below - here, twist], axis=-1).reshape(-1, 4)
    y, x = (np.tile(np.clip(starts[:, axis], 0, last), s) for axis, last in ((0, h - 1.0), (1, w - 1.0)))
    map_of, place = np.repeat(np.arange(s) * (h * w), len(starts)), np.arange(s * len(starts))
    end_y, end_x = y.copy(), x.copy()
    for _ in range(most):
        row, column = y.astype(np.intp), x.astype(np.intp)
        down, across = y - row, x - column
        four = corners.take(map_of + row * w + column, axis=0)
        move = four[:, 0] + across * four[:, 1] + down * (four[:, 2] + across * four[:, 3])
        new_y, new_x = np.clip(y + move.real, 0, h - 1.0), np.clip(x + move.imag, 0, w - 1.0)
        moving = np.abs(new_y - y) + np.abs(new_x - x) > 5e-3
        rests = place[~moving]
        end_y[rests], end_x[rests] = new_y[~moving], new_x[~moving]
        y, x, map_of, place = new_y[moving], new_x[moving], map_of[moving], place[moving]
        if not place.size:
            break
    end_y[place], end_x[place] = y, x
    return np.stack([end_y, end_x], axis=-1).reshape(s, -1, 2)


def finite(field: OffsetField) -> bool:
    """Whether all offsets are finite."""
    return bool(torch.isfinite(field.offset).all())

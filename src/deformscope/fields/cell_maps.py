"""d_f, divergence and the extent of d_k of a field on a photo, as numpy maps of its cells, in photo px."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float, Int

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


def sample_each(
    values: Float[Array, "s h w"], source: Int[Array, "*points"], cells: Float[Array, "*points 2"]
) -> Float[Array, "*points"]:
    """The same, at each place in the map ``source`` of several."""
    from scipy.ndimage import map_coordinates

    return map_coordinates(values, np.stack([source, cells[..., 0], cells[..., 1]]), order=1, mode="nearest")


def sample_grid(
    values: Float[Array, "*maps h w"], rows: Float[Array, " rows"], columns: Float[Array, " columns"]
) -> Float[Array, "*maps rows columns"]:
    """The same numbers as of :func:`sample` at each pair of a row and a column (in cells), of many maps at once; it is
    several times faster."""
    (top, bottom, y0, y1), (left, right, x0, x1) = (
        _between(line, length) for line, length in zip((rows, columns), values.shape[-2:], strict=True)
    )
    above, below = values[..., top, :] * y0[:, None], values[..., bottom, :] * y1[:, None]
    found = above[..., left] * x0
    for line, side, weight in ((above, right, x1), (below, left, x0), (below, right, x1)):
        found += line[..., side] * weight
    return found


def _between(
    line: Float[Array, " p"], length: int
) -> tuple[Int[Array, " p"], Int[Array, " p"], Float[Array, " p"], Float[Array, " p"]]:
    """The cells before and after each place of a line, and their weights. These are scipy's to the last bit, beyond the
    border too: which of nearly equal values is the highest must not depend on the function that sampled them."""
    below = np.floor(line)
    before, after = (np.clip(cell, 0, length - 1).astype(int) for cell in (below, below + 1))
    first = 1 - (line - below)
    return before, after, first, 1 - first


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
    step = 0.6 * (d_f[..., 0] + 1j * d_f[..., 1])
    step *= np.minimum(1, 0.6 / np.maximum(np.abs(step), 1e-12))
    several = step.reshape(-1, *step.shape[-2:])
    block = max(1, AT_ONCE // max(len(starts), 1))
    found = [_settled(several[i : i + block], starts, most) for i in range(0, len(several), block)]
    return np.concatenate(found).reshape(*d_f.shape[:-3], len(starts), 2)


def _settled(step: Complex[Array, "s h w"], starts: Float[Array, "m 2"], most: int) -> Float[Array, "s m 2"]:
    """This loop takes a fifth of the time of a photo's metrics, so it works in place where it can, on complex numbers,
    which interpolate both components at once, and looks for places at rest to leave out only when there are many."""
    s, h, w = step.shape
    padded = np.pad(step, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here, right, below = padded[:, :-1, :-1], padded[:, :-1, 1:], padded[:, 1:, :-1]
    # Bilinear within a cell: here + across · (right - here) + down · (below - here + across · twist).
    twist = padded[:, 1:, 1:] - below - (right - here)
    corners = [np.ascontiguousarray(one).ravel() for one in (here, right - here, below - here, twist)]
    y, x = (np.tile(np.clip(starts[:, axis], 0, last), s) for axis, last in ((0, h - 1.0), (1, w - 1.0)))
    map_of, place = np.repeat(np.arange(s) * float(h * w), len(starts)), np.arange(s * len(starts))
    ends, moves = np.empty((2, len(place))), np.ones(len(place))
    for _ in range(most):
        down, across = np.floor(y), np.floor(x)
        cell = (down * w + across + map_of).astype(np.intp)
        np.subtract(y, down, out=down)
        np.subtract(x, across, out=across)
        base, to_right, to_below, twisted = (one.take(cell) for one in corners)
        twisted *= across
        twisted += to_below
        twisted *= down
        to_right *= across
        to_right += base
        twisted += to_right
        new_y, new_x = twisted.real * moves, twisted.imag * moves
        for new, old, last in ((new_y, y, h - 1.0), (new_x, x, w - 1.0)):
            new += old
            np.clip(new, 0, last, out=new)
            np.subtract(old, new, out=old)
            np.abs(old, out=old)
        y += x
        moving = y > 5e-3
        y, x = new_y, new_x
        moves *= moving
        left = np.count_nonzero(moves)
        if left < 0.85 * len(place):
            ends[:, place] = y, x
            go = np.flatnonzero(moves)
            y, x, map_of, place, moves = y[go], x[go], map_of[go], place[go], np.ones(left)
        if not left:
            break
    ends[:, place] = y, x
    return ends.T.reshape(s, -1, 2)


def finite(field: OffsetField) -> bool:
    """Whether all offsets are finite."""
    return bool(torch.isfinite(field.offset).all())

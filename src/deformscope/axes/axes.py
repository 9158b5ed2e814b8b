"""Where the cells of any tensor lie in the image: its dimensions as products of pieces of the image's y and x.

A tensor's dimension is a product of *factors*: pieces of y, of x, or of anything else (images, channels), each with its
size and, in image px, its step. Permutes, reshapes, windows, tokens and pixel shuffles then are algebra on tuples. The
place of a cell is the middle of its receptive field, of which the first and the last px are followed. Nothing is
guessed: what cannot be said this way is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..fields.places import CellGrid, Pair, Point

Y, X = 0, 1
Factor = tuple[int | None, int, float]
"""Axis (Y, X, or None: anything else), size, and step in px of the image."""
Dim = tuple[Factor, ...]
"""Row-major, the last factor is the fastest."""
SAME = 1e-6


class Axes(NamedTuple):
    """The dimensions of one tensor. Px of a cell along an axis = origin + Σ step · index over its factors."""

    dims: tuple[Dim, ...]
    low: Point
    """Of the first cell: the centre of the first px of its receptive field, (y, x)."""
    high: Point
    """And of the last one."""
    coarsest: Point = (1.0, 1.0)
    """The largest step on the way here, px (y, x): after upsampling, cells know no better where they are."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(size_of(dim) for dim in self.dims)

    def with_dim(self, index: int, dim: Iterable[Factor]) -> Axes:
        """With another dimension in the place of this one."""
        dims = list(self.dims)
        dims[index] = tuple(dim)
        return self._replace(dims=tuple(dims))

    def moved(self, axis: int, low: float, high: float, step: float = 0.0) -> Axes:
        """With a receptive field that begins and ends so many px later, after a ``step`` of so many px."""
        lows, highs, coarsest = list(self.low), list(self.high), list(self.coarsest)
        lows[axis] += min(low, high)
        highs[axis] += max(low, high)
        coarsest[axis] = max(coarsest[axis], abs(step))
        return Axes(self.dims, (lows[0], lows[1]), (highs[0], highs[1]), (coarsest[0], coarsest[1]))

    def absorbed(self, index: int, size: int = 1) -> Axes:
        """After a sum over this dimension, which is then one of ``size`` other things: receptive fields join."""
        axes = self
        for axis, count, step in self.dims[index]:
            if axis is not None:
                axes = axes.moved(axis, min(0.0, (count - 1) * step), max(0.0, (count - 1) * step))
        return axes.with_dim(index, plain(size))

    def without(self, index: int) -> Axes:
        """Without this dimension, whose size is one."""
        return self._replace(dims=(*self.dims[:index], *self.dims[index + 1 :]))

    def grid(self, size: Pair) -> CellGrid | None:
        """The cells of a map of this height and width, with one piece of y and, after it, one of x; else None."""
        found = [factor for dim in self.dims for factor in dim if factor[0] is not None]
        if [factor[:2] for factor in found] != [(Y, size[0]), (X, size[1])]:
            return None
        middle = [(a + b) / 2 for a, b in zip(self.low, self.high, strict=True)]
        return CellGrid((found[0][2], found[1][2]), (middle[0], middle[1]))


def plain(size: int) -> Dim:
    """A dimension of so many things that are no places."""
    return () if size == 1 else ((None, size, 0.0),)


def size_of(dim: Dim) -> int:
    """The size of a dimension."""
    return math.prod(factor[1] for factor in dim)


def axes_in(dim: Dim) -> bool:
    """Whether any piece of it is one of y or x."""
    return any(axis is not None for axis, _, _ in dim)


def image_axes(shape: Sequence[int]) -> Axes:
    """An image ``[... h w]``: its px are its cells."""
    dims = [*(plain(size) for size in shape[:-2]), ((Y, shape[-2], 1.0),), ((X, shape[-1], 1.0),)]
    return Axes(tuple(dims), (0.5, 0.5), (0.5, 0.5))


def merged(dim: Iterable[Factor]) -> Dim:
    """The same with neighbours joined that are one piece: y of 4 × 8 px and of 8 × 1 px is y of 32 × 1 px."""
    out: list[Factor] = []
    for axis, size, step in dim:
        if size == 1:
            continue
        before = out[-1] if out else None
        if before and before[0] == axis and (axis is None or abs(before[2] - size * step) < SAME):
            out[-1] = axis, before[1] * size, step
        else:
            out.append((axis, size, step))
    return tuple(out)


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes | None:
    """After a view or reshape to ``shape``: factors split and merge, row-major."""
    dims: list[Dim] = []
    left, right = 0, 0
    before = axes.shape
    while left < len(before) or right < len(shape):
        # The shortest runs of old and new dimensions of equal size.
        ends, sizes = [left + 1, right + 1], [before[left] if left < len(before) else 1, 1]
        sizes[1] = shape[right] if right < len(shape) else 1
        while sizes[0] != sizes[1]:
            side, of = (0, before) if sizes[0] < sizes[1] else (1, shape)
            if ends[side] >= len(of):
                return None
            sizes[side] *= of[ends[side]]
            ends[side] += 1
        old, new = axes.dims[left : ends[0]], shape[right : ends[1]]
        found = old if len(old) == len(new) == 1 else _split(merged(f for dim in old for f in dim), new)
        if found is None:
            return None
        dims += found
        left, right = ends
    return axes._replace(dims=tuple(dims))


def _split(factors: Dim, sizes: Sequence[int]) -> list[Dim] | None:
    rest, dims = list(factors), []
    for size in sizes:
        dim: list[Factor] = []
        while size > 1:
            if not rest:
                return None
            axis, count, step = rest.pop(0)
            if size % count == 0:
                dim.append((axis, count, step))
                size //= count
            elif count % size == 0:
                dim.append((axis, size, step * (count // size)))
                rest.insert(0, (axis, count // size, step))
                size = 1
            else:
                return None
        dims.append(merged(dim))
    return dims if not rest else None


def narrowed(axes: Axes, index: int, start: int, length: int, step: int = 1) -> Axes | None:
    """``length`` cells of a dimension, every ``step``-th from ``start``."""
    dim = axes.dims[index]
    if (start, length, step) == (0, size_of(dim), 1):
        return axes
    if not axes_in(dim):
        return axes.with_dim(index, plain(length))
    (axis, _, px), rest = dim[0], dim[1:]
    inner = size_of(rest)  # cells for each of the first factor's: whole ones of these can be taken
    if start % inner or length % inner or (inner > 1 and step != 1):
        return None
    out = axes.with_dim(index, ((axis, length // inner, px * step), *rest))
    return out if axis is None else out.moved(axis, start // inner * px, start // inner * px, px * step)


def selected(axes: Axes, index: int, cell: int) -> Axes:
    """One cell of a dimension, which then is gone."""
    out = axes
    for axis, size, step in reversed(axes.dims[index]):
        cell, at = divmod(cell, size)
        if axis is not None:
            out = out.moved(axis, at * step, at * step)
    return out.without(index)


def strided(axes: Axes, index: int, kernel: int, stride: float, padding: float, dilation: int, out: int) -> Axes | None:
    """After a convolution or pooling along a dimension."""
    if (kernel, stride, padding) == (1, 1, 0):
        return axes
    return _regular(axes, index, out, stride, -padding, dilation * (kernel - 1) - padding)


def padded(axes: Axes, index: int, before: int, size: int) -> Axes | None:
    """With ``before`` more cells (or fewer, if negative) ahead of a dimension, which then has ``size``."""
    return _regular(axes, index, size, 1, -before, -before)


def rescaled(axes: Axes, index: int, ratio: float, shift: float, out: int) -> Axes | None:
    """After a resize along a dimension: a new cell i lies at ``ratio`` · i + ``shift`` old ones."""
    return _regular(axes, index, out, ratio, shift, shift)


def _regular(axes: Axes, index: int, size: int, ratio: float, first: float, last: float) -> Axes | None:
    """With ``size`` cells along a dimension: cell i reads the old ones from ``ratio`` · i + ``first`` to + ``last``.

    None for a dimension of several pieces.
    """
    dim = axes.dims[index]
    if not axes_in(dim):
        return axes.with_dim(index, plain(size))
    if len(dim) > 1:
        return None
    ((axis, _, px),) = dim
    assert axis is not None
    return axes.with_dim(index, ((axis, size, px * ratio),)).moved(axis, first * px, last * px, px * ratio)


def joined(several: Sequence[Axes]) -> Axes | None:
    """After a sum, or a concatenation of channels, of tensors with the same steps: receptive fields join.

    Where one of them came through a coarser map than another (a pyramid's upper level, resized), the finest has the
    places.
    """
    first = several[0]
    if len(several) == 1:
        return first
    low, high, coarsest = [], [], []
    for axis in (Y, X):
        having = [one for one in several if any(f[0] == axis for dim in one.dims for f in dim)] or [first]
        finest = min(one.coarsest[axis] for one in having)
        chosen = [one for one in having if one.coarsest[axis] < finest + SAME]
        low.append(min(one.low[axis] for one in chosen))
        high.append(max(one.high[axis] for one in chosen))
        coarsest.append(finest)
    dims = []
    for each in zip(*(one.dims for one in several), strict=True):
        placed = [dim for dim in each if axes_in(dim)] or each[:1]
        if any(not _alike(dim, placed[0]) for dim in placed[1:]):
            return None
        dims.append(placed[0])
    return Axes(tuple(dims), (low[0], low[1]), (high[0], high[1]), (coarsest[0], coarsest[1]))


def _alike(one: Dim, other: Dim) -> bool:
    return len(one) == len(other) and all(
        a[:2] == b[:2] and abs(a[2] - b[2]) < SAME for a, b in zip(one, other, strict=True)
    )


class Pieces(NamedTuple):
    """A tensor that was concatenated along a dimension that holds places: a class token and patches, several levels."""

    dim: int
    pieces: tuple[tuple[int, Axes | None], ...]
    """Size along the dimension, and axes, of each."""

    def narrowed(self, start: int, length: int) -> Axes | Pieces | None:
        """A part of the dimension, within one piece."""
        for size, axes in self.pieces:
            if start < size:
                if axes is None or start + length > size:
                    return None
                return narrowed(axes, self.dim, start, length)
            start -= size
        return None

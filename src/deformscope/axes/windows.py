"""How windows move the places of cells: convolutions, poolings, resizes, pads, and pixel shuffles.

Each rule takes a call and the axes of its first argument, and gives those of its output; None where the places of cells
cannot be said.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .axes import Axes, Pieces, axes_in, padded, plain, rescaled, reshaped, strided

Places = Axes | Pieces | None


@dataclass(frozen=True)
class Operation:
    """One call of an operator, and one of the tensors that it returned."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Tensor
    number: int
    """Which of the returned tensors ``out`` is."""
    places: Callable[[Any], Places]
    """What is known of a tensor."""

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """An argument, by place or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def dim(self, index: int, default: int = 0) -> int:
        """The argument ``dim`` at this place, counted from the front of the first argument's dimensions."""
        return self.arg(index, "dim", default) % max(self.args[0].ndim, 1)


Rule = Callable[[Operation, Axes], Places]
"""From a call and the axes of its first argument to the axes of the output."""


def each(value: Any, count: int, default: int = 1) -> list[int]:
    """A value for each spatial dimension, of one for all of them or of a list."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return [default] * count
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _windows(
    axes: Axes, out: Tensor, kernel: list[int], stride: Any, padding: Any, dilation: Any, channels: bool = False
) -> Places:
    count = len(kernel)
    found: Axes | None = axes.absorbed(len(axes.dims) - count - 1, out.shape[-count - 1]) if channels else axes
    geometry = zip(
        kernel, each(stride, count), each(padding, count, 0), each(dilation, count), out.shape[-count:], strict=True
    )
    for index, (size, step, pad, spread, after) in enumerate(geometry, len(axes.dims) - count):
        found = found and strided(found, index, size, step, pad, spread, after)
    return found


def convolution(op: Operation, axes: Axes) -> Places:
    kernel = list(op.args[1].shape[2:])
    whole = op.name in ("aten::convolution", "aten::_convolution")
    stride, padding, dilation = op.arg(3, "stride"), op.arg(4, "padding"), op.arg(5, "dilation")
    if isinstance(padding, str):
        padding = [
            d * (k - 1) // 2 if padding == "same" else 0
            for d, k in zip(each(dilation, len(kernel)), kernel, strict=True)
        ]
    if not (whole and op.arg(6, "transposed")):
        return _windows(axes, op.out, kernel, stride, padding, dilation, channels=True)
    count, found = len(kernel), axes.absorbed(len(axes.dims) - len(kernel) - 1, op.out.shape[-len(kernel) - 1])
    geometry = zip(kernel, each(stride, count), each(padding, count, 0), each(dilation, count), strict=True)
    for index, (size, step, pad, spread) in enumerate(geometry, len(axes.dims) - count):
        shift = (pad - spread * (size - 1) / 2) / step
        after = rescaled(found, index, 1 / step, shift, op.out.shape[index])
        if after is None:
            return None
        found = after
    return found


def pool(op: Operation, axes: Axes) -> Places:
    count = int(op.name.partition("pool")[2][0])
    kernel, maximum = each(op.args[1], count), "max" in op.name
    stride = op.arg(2, "stride") or kernel
    return _windows(axes, op.out, kernel, stride, op.arg(3, "padding", 0), op.arg(4, "dilation", 1) if maximum else 1)


def resize(op: Operation, axes: Axes) -> Places:
    """The map's edges stay where they are, unless corners are aligned; a factor that was given counts as it is."""
    count, aligned = op.out.ndim - 2, op.arg(2, "align_corners") is True
    options = [one for value in (*op.args[2:], *op.kwargs.values()) for one in _listed(value)]
    factors = [one for one in options if isinstance(one, float)]
    found: Axes | None = axes
    for place in range(count):
        before, after = axes.shape[2 + place], op.out.shape[2 + place]
        ratio = 1 / factors[place] if len(factors) == count else before / after
        if aligned:
            ratio = (before - 1) / max(after - 1, 1)
        found = found and rescaled(found, 2 + place, ratio, 0.0 if aligned else (ratio - 1) / 2, after)
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def adaptive_pool(op: Operation, axes: Axes) -> Places:
    count = len(each(op.args[1], int(op.name.partition("pool")[2][0])))
    before = axes.shape[-count:]
    if any(b % a for b, a in zip(before, op.out.shape[-count:], strict=True)):
        return None  # windows of unequal sizes
    kernel = [b // a for b, a in zip(before, op.out.shape[-count:], strict=True)]
    return _windows(axes, op.out, kernel, kernel, 0, 1)


def pad(op: Operation, axes: Axes) -> Places:
    found: Axes | None = axes
    for place in range(len(op.args[1]) // 2):
        index, left, right = len(axes.dims) - 1 - place, op.args[1][2 * place], op.args[1][2 * place + 1]
        if left or right:
            found = found and padded(found, index, left, op.out.shape[index])
    return found


def columns(op: Operation, axes: Axes) -> Places:
    """``F.unfold``: kernel points become channels, and the places of kernels one dimension."""
    kernel, spread, pad, step = (each(value, 2) for value in op.args[1:5])
    if any(len(dim) != 1 or not axes_in(dim) for dim in axes.dims[-2:]):
        return None
    out, channels, places = axes, list(axes.dims[-3]), []
    for i, ((axis, size, px),) in enumerate(axes.dims[-2:]):
        assert axis is not None
        count = (size + 2 * pad[i] - spread[i] * (kernel[i] - 1) - 1) // step[i] + 1
        channels.append((axis, kernel[i], px * spread[i]))
        places.append((axis, count, px * step[i]))
        out = out.moved(axis, -pad[i] * px, -pad[i] * px, px * step[i])
    return out._replace(dims=(*axes.dims[:-3], tuple(channels), tuple(places)))


def unfold(op: Operation, axes: Axes) -> Places:
    """``Tensor.unfold``: windows of a dimension, whose cells become a last dimension."""
    index, size, step = op.dim(1), op.arg(2, "size"), op.arg(3, "step")
    dim = axes.dims[index]
    if len(dim) != 1:
        return None
    axis, _, px = dim[0]
    kept = axes.with_dim(index, ((axis, op.out.shape[index], px * step),))
    return kept._replace(dims=(*kept.dims, ((axis, size, px),)))


def pixel_shuffle(op: Operation, axes: Axes) -> Places:
    """Pixel shuffle: cells of r² channels each become r × r cells, whose places divide the cell's."""
    r = op.args[1]
    dims, n = axes.dims, len(axes.dims)
    if axes_in(dims[n - 3]):
        parts = reshaped(axes, (*axes.shape[: n - 3], op.out.shape[-3], r, r, *axes.shape[n - 2 :]))
        if parts is None:
            return None
        order = [*range(n - 3), n - 3, n, n - 2, n + 1, n - 1]
        return reshaped(parts._replace(dims=tuple(parts.dims[i] for i in order)), op.out.shape)
    found: Axes | None = axes.with_dim(n - 3, plain(op.out.shape[-3]))
    for index in (n - 2, n - 1):
        found = found and rescaled(found, index, 1 / r, (1 / r - 1) / 2, op.out.shape[index])
    return found


def pixel_unshuffle(op: Operation, axes: Axes) -> Places:
    r, n = op.args[1], len(axes.dims)
    *ahead, c, h, w = axes.shape
    parts = reshaped(axes, (*ahead, c, h // r, r, w // r, r))
    order = [*range(n - 3), n - 3, n - 1, n + 1, n - 2, n]
    return parts and reshaped(parts._replace(dims=tuple(parts.dims[i] for i in order)), op.out.shape)

"""How operators move the grid of a map's cells: a rule each, from the grid of its input to that of its output.

Convolutions, poolings, resizes, paddings, slices and flips move and stretch the grid; everything else that keeps the
map's height and width keeps its grid. A rule looks at shapes and geometry only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ..fields.field import CellGrid, Pair


class Shaped(NamedTuple):
    """What a rule needs to know of a tensor."""

    shape: tuple[int, ...]


Shape = Tensor | Shaped
Rule = Callable[[CellGrid, tuple[Any, ...], dict[str, Any], Shape], CellGrid]
"""From the input's grid, the operator's arguments and its output to the output's grid."""


def moves(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call of an operator moves the grid of a map ``[... c h w]``."""
    if name not in RULES or not args:
        return False
    if not isinstance(args[0], (Tensor, Shaped)) or len(args[0].shape) < 3:
        return False
    if name == "aten::slice":
        dim = (args[1] if len(args) > 1 else 0) - (len(args[0].shape) if len(args) > 1 and args[1] > 0 else 0)
        return dim in (-1, -2)
    return True


def _pair(value: Any, default: Pair) -> Pair:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return default
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


def _convolved(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    kernel = args[1].shape[-2:]
    if len(args[1].shape) < 4:  # a 1-d convolution says nothing of height and width
        return grid
    stride = _pair(_argument(args, kwargs, 3, "stride"), (1, 1))
    dilation = _pair(_argument(args, kwargs, 5, "dilation"), (1, 1))
    padding = _argument(args, kwargs, 4, "padding")
    if isinstance(padding, str):
        padding = [d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    pad = _pair(padding, (0, 0))
    if _argument(args, kwargs, 6, "transposed") is True:
        return _transposed(grid, kernel, stride, pad, dilation)
    return grid.strided((kernel[0], kernel[1]), stride, pad, dilation)


def _convolved_back(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    stride = _pair(_argument(args, kwargs, 3, "stride"), (1, 1))
    padding = _pair(_argument(args, kwargs, 4, "padding"), (0, 0))
    dilation = _pair(_argument(args, kwargs, 7, "dilation"), (1, 1))
    return _transposed(grid, args[1].shape[-2:], stride, padding, dilation)


def _transposed(grid: CellGrid, kernel: Any, stride: Pair, padding: Pair, dilation: Pair) -> CellGrid:
    origin, reduction = [], []
    for axis in (0, 1):
        centre = dilation[axis] * (kernel[axis] - 1) / 2 - padding[axis]
        origin.append(grid.origin[axis] - grid.reduction[axis] * centre / stride[axis])
        reduction.append(grid.reduction[axis] / stride[axis])
    return CellGrid((reduction[0], reduction[1]), (origin[0], origin[1]))


def _pooled(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    kernel = _pair(args[1], (1, 1))
    stride = _pair(_argument(args, kwargs, 2, "stride"), kernel)
    return grid.strided(kernel, stride, _pair(_argument(args, kwargs, 3, "padding"), (0, 0)), (1, 1))


def _resized(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    before, after = args[0].shape[-2:], out.shape[-2:]
    if _argument(args, kwargs, 2, "align_corners") is not True:
        return grid.resized((before[0], before[1]), (after[0], after[1]))
    steps = [(b - 1) / max(a - 1, 1) for b, a in zip(before, after, strict=True)]
    return CellGrid((grid.reduction[0] * steps[0], grid.reduction[1] * steps[1]), grid.origin)


def _averaged(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    return grid.resized((args[0].shape[-2], args[0].shape[-1]), (out.shape[-2], out.shape[-1]))


def _padded(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    left, _, top, _ = [*args[1], 0, 0, 0, 0][:4]
    return grid.strided((1, 1), (1, 1), (top, left), (1, 1))


def _sliced(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    axis = (_argument(args, kwargs, 1, "dim") or 0) % len(args[0].shape) - len(args[0].shape)
    if axis not in (-1, -2):
        return grid
    start = _argument(args, kwargs, 2, "start") or 0
    start = max(0, start + args[0].shape[axis]) if start < 0 else start
    step = _argument(args, kwargs, 4, "step") or 1
    return grid.strided(
        (1, 1), (step, 1) if axis == -2 else (1, step), (-start, 0) if axis == -2 else (0, -start), (1, 1)
    )


def _flipped(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    origin, reduction = list(grid.origin), list(grid.reduction)
    for dim in args[1]:
        axis = dim % len(out.shape) - len(out.shape) + 2
        if axis in (0, 1):
            origin[axis] += reduction[axis] * (out.shape[axis - 2] - 1)
            reduction[axis] *= -1
    return CellGrid((reduction[0], reduction[1]), (origin[0], origin[1]))


def _deformed(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Shape) -> CellGrid:
    kernel = (args[1].shape[-2], args[1].shape[-1])
    return grid.strided(kernel, (args[5], args[6]), (args[7], args[8]), (args[9], args[10]))


RULES: dict[str, Rule] = {
    "aten::convolution": _convolved,
    "aten::conv2d": _convolved,
    "aten::_convolution": _convolved,
    "aten::conv_transpose2d": _convolved_back,
    "torchvision::deform_conv2d": _deformed,
    "aten::constant_pad_nd": _padded,
    "aten::pad": _padded,
    "aten::reflection_pad2d": _padded,
    "aten::replication_pad2d": _padded,
    "aten::slice": _sliced,
    "aten::flip": _flipped,
    "aten::adaptive_avg_pool2d": _averaged,
    "aten::_adaptive_avg_pool2d": _averaged,
    **dict.fromkeys(("aten::max_pool2d", "aten::max_pool2d_with_indices", "aten::avg_pool2d"), _pooled),
    **{
        f"aten::{prefix}upsample_{kind}": _resized if kind.startswith("bi") else _averaged
        for prefix in ("", "_")
        for kind in ("nearest2d", "nearest_exact2d", "bilinear2d", "bicubic2d", "bilinear2d_aa", "bicubic2d_aa")
    },
}

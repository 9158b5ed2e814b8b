"""Follow receptive fields' centres through a network's operators, so that cells have exact places in the image.

Convolutions, poolings, resizes, paddings, slices and flips move and stretch the grid of cells; everything else that
keeps the map's height and width keeps its grid. Where the trail breaks (tokens, reshapes), the grid falls back on the
ratio of the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..fields.field import CellGrid, Pair


class GridTrace:
    """The grids of all tensors seen so far, kept only as long as the tensors themselves.

    The first tensor that a convolution, pooling or resize meets is taken for the network's input, and later ones with
    as many channels for the next inputs.
    """

    def __init__(self) -> None:
        self._grids = WeakTensorKeyDictionary()
        self._input: tuple[int, Pair] | None = None
        self._calls = WeakTensorKeyDictionary()

    def grid(self, tensor: Tensor) -> CellGrid:
        """Where the cells of a map ``[... c h w]`` lie in the network's input."""
        known = self._grids.get(tensor)
        if known is None:
            known = self._adopt(tensor)
            self._grids[tensor] = known
        return known

    def call(self, tensor: Tensor) -> int | None:
        """The number of the deformable call through which a map came last, on whichever way; None: through none."""
        return self._calls.get(tensor)

    def called(self, tensor: Tensor, number: int) -> None:
        """Note what a deformable call put out, calls being numbered in their order."""
        self._calls[tensor] = number

    def see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note the grid of what the operator ``name`` made out of ``args``."""
        tensors = [out] if isinstance(out, Tensor) else [t for t in tensors_in(out) if t.ndim >= 3]
        if not tensors:
            return
        self._hand_on((args, kwargs), tensors)
        rule = _RULES.get(name)
        if rule is not None and args and isinstance(args[0], Tensor) and args[0].ndim >= 3:
            moved = rule(self.grid(args[0]), args, kwargs, tensors[0])
            for tensor in tensors:
                self._grids[tensor] = moved
            return
        for tensor in tensors:
            if tensor.ndim < 3:
                continue
            for source in tensors_in((args, kwargs)):
                if source.ndim >= 3 and source.shape[-2:] == tensor.shape[-2:] and source in self._grids:
                    self._grids[tensor] = self._grids[source]
                    break

    def _hand_on(self, sources: Any, tensors: list[Tensor]) -> None:
        if not len(self._calls):
            return
        numbers = [self._calls[source] for source in tensors_in(sources) if source in self._calls]
        if numbers:
            for tensor in tensors:
                if tensor.ndim >= 3:
                    self._calls[tensor] = max(numbers)

    def note(self, tensor: Tensor, grid: CellGrid) -> None:
        """Set a map's grid, for an operator that the dispatcher sees only in pieces."""
        self._grids[tensor] = grid

    def _adopt(self, tensor: Tensor) -> CellGrid:
        size, channels = (tensor.shape[-2], tensor.shape[-1]), tensor.shape[-3]
        if self._input is None or self._input[0] == channels:
            self._input = channels, size
            return CellGrid()
        whole = self._input[1]
        for power in range(8):  # stacked stride-2 layers round odd sizes up
            if all(-(-w // 2**power) == s for w, s in zip(whole, size, strict=True)):
                return CellGrid((2.0**power,) * 2)
        return CellGrid().resized(whole, size)


def tensors_in(values: Any) -> Iterator[Tensor]:
    """All tensors of an operator's arguments or results, however lists, tuples and dicts nest them."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


def _pair(value: Any, default: Pair) -> Pair:
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return default
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], index: int, name: str) -> Any:
    return args[index] if len(args) > index else kwargs.get(name)


Rule = Callable[[CellGrid, tuple[Any, ...], dict[str, Any], Tensor], CellGrid]


def _convolved(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    kernel = args[1].shape[-2:]
    if args[1].ndim < 4:  # a 1-d convolution says nothing of height and width
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


def _convolved_back(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
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


def _pooled(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    kernel = _pair(args[1], (1, 1))
    stride = _pair(_argument(args, kwargs, 2, "stride"), kernel)
    return grid.strided(kernel, stride, _pair(_argument(args, kwargs, 3, "padding"), (0, 0)), (1, 1))


def _resized(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    before, after = args[0].shape[-2:], out.shape[-2:]
    if _argument(args, kwargs, 2, "align_corners") is not True:
        return grid.resized((before[0], before[1]), (after[0], after[1]))
    steps = [(b - 1) / max(a - 1, 1) for b, a in zip(before, after, strict=True)]
    return CellGrid((grid.reduction[0] * steps[0], grid.reduction[1] * steps[1]), grid.origin)


def _averaged(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    return grid.resized((args[0].shape[-2], args[0].shape[-1]), (out.shape[-2], out.shape[-1]))


def _padded(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    left, _, top, _ = [*args[1], 0, 0, 0, 0][:4]
    return grid.strided((1, 1), (1, 1), (top, left), (1, 1))


def _sliced(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    axis = (_argument(args, kwargs, 1, "dim") or 0) % args[0].ndim - args[0].ndim
    if axis not in (-1, -2):
        return grid
    start = _argument(args, kwargs, 2, "start") or 0
    start = max(0, start + args[0].shape[axis]) if start < 0 else start
    step = _argument(args, kwargs, 4, "step") or 1
    return grid.strided(
        (1, 1), (step, 1) if axis == -2 else (1, step), (-start, 0) if axis == -2 else (0, -start), (1, 1)
    )


def _flipped(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    origin, reduction = list(grid.origin), list(grid.reduction)
    for dim in args[1]:
        axis = dim % out.ndim - out.ndim + 2
        if axis in (0, 1):
            origin[axis] += reduction[axis] * (out.shape[axis - 2] - 1)
            reduction[axis] *= -1
    return CellGrid((reduction[0], reduction[1]), (origin[0], origin[1]))


def _deformed(grid: CellGrid, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> CellGrid:
    kernel = (args[1].shape[-2], args[1].shape[-1])
    return grid.strided(kernel, (args[5], args[6]), (args[7], args[8]), (args[9], args[10]))


_RULES: dict[str, Rule] = {
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

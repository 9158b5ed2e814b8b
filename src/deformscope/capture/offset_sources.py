"""Where offsets come from: which convolutions made those of a deformable call, on which grid, and whether finite.

A dispatch mode marks what every ``nn.Conv2d`` returns and carries the mark through views, slices, sums, clamps and the
like, up to the offset that the operator gets. Convolutions begin a new mark; everything else hands on its inputs'.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from ..fields.field import Point
from ..ops.observe import DeformCall, observing
from .grid_trace import GridTrace, tensors_in


@dataclass(frozen=True)
class Origin:
    """Whence the offsets of one call of a deformable convolution came."""

    convolutions: tuple[str, ...]
    """Names of the ``nn.Conv2d`` modules that made them; empty where they came from something else."""
    misplaced: Point
    """How far (y, x), in cells of the operator's input, the offset map's cells lie from the cells they move."""
    non_finite: float
    """Share of offset values that are NaN or infinite, before anything replaced them."""


@dataclass(frozen=True)
class _Mark:
    names: frozenset[str] = frozenset()
    non_finite: float = 0.0


@contextmanager
def origins(model: nn.Module) -> Iterator[list[Origin]]:
    """Trace the offsets of every deformable call inside the block, in the order of the calls.

    NaN and infinite offsets, on which torchvision's operator crashes the process, reach it as far beyond the map.
    Around :func:`deformscope.capture` (``with origins(model) as traced, capture(model) as fields``), that still sees
    them, and its fields and these records are in the same order.
    """
    tracer = _Tracer({id(module): name for name, module in model.named_modules()})
    hook = nn.modules.module.register_module_forward_hook(tracer.leave)
    try:
        with observing(tracer.own_call), tracer:
            yield tracer.found
    finally:
        hook.remove()


class _Tracer(TorchDispatchMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.found: list[Origin] = []
        self._names = names
        self._marks = WeakTensorKeyDictionary()
        self._grids = GridTrace()
        self._thread = threading.get_ident()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "torchvision::deform_conv2d":
            tensor, weight, offset, *rest = args
            geometry = [(rest[i], rest[i + 1]) for i in (2, 4, 6)]
            kernel = (weight.shape[-2], weight.shape[-1])
            self._record(tensor, offset, kernel, *geometry)
            if not bool(torch.isfinite(offset).all()):
                outside = -2.0 * (max(tensor.shape[-2:]) + max(geometry[1]) + 1)
                args = (tensor, weight, offset.nan_to_num(outside, outside, outside), *rest)
        out = func(*args, **kwargs)
        self._grids.see(name, args, kwargs, out)
        mark = _Mark() if "conv" in name else self._joined((args, kwargs))
        if name == "aten::nan_to_num":
            mark = _Mark(mark.names, max(mark.non_finite, _share_non_finite(args[0])))
        if mark.names or mark.non_finite:
            for tensor in tensors_in(out):
                self._marks[tensor] = mark
        return out

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module has run: a convolution's output carries its name."""
        if isinstance(module, nn.Conv2d) and id(module) in self._names and threading.get_ident() == self._thread:
            for tensor in tensors_in(output):
                self._marks[tensor] = _Mark(frozenset([self._names[id(module)]]))

    def own_call(self, call: DeformCall) -> None:
        """A call of deformscope's operator, which the dispatcher saw only in pieces."""
        self._record(call.input, call.offset, call.kernel_size, call.stride, call.padding, call.dilation)
        grid = self._grids.grid(call.input)
        self._grids.note(call.output, grid.strided(call.kernel_size, call.stride, call.padding, call.dilation))
        self._marks[call.output] = _Mark()

    def _record(self, tensor: Tensor, offset: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> None:
        cells, mark = self._grids.grid(tensor), self._marks.get(offset) or _Mark()
        moved, made = cells.strided(kernel, stride, padding, dilation), self._grids.grid(offset)
        corners = [[(0, 0), (size - 1, size - 1)] for size in offset.shape[-2:]]
        apart = []
        for axis in (0, 1):
            gaps = [
                made.origin[axis] + made.reduction[axis] * c[0] - moved.origin[axis] - moved.reduction[axis] * c[1]
                for c in corners[axis]
            ]
            apart.append(max(gaps, key=abs) / cells.reduction[axis])
        share = max(mark.non_finite, _share_non_finite(offset))
        self.found.append(Origin(tuple(sorted(mark.names)), (apart[0], apart[1]), share))

    def _joined(self, values: Any) -> _Mark:
        marks = [self._marks[tensor] for tensor in tensors_in(values) if tensor in self._marks]
        if not marks:
            return _Mark()
        return _Mark(frozenset().union(*(m.names for m in marks)), max(m.non_finite for m in marks))


def _share_non_finite(tensor: Tensor) -> float:
    return 1.0 - torch.isfinite(tensor).float().mean().item() if tensor.numel() else 0.0

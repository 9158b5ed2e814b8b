"""Deformable convolutions as they run in training, their offsets live: with the gradient that a loss needs.

A function mode sees torchvision's operator above autograd, where a dispatch mode, below it, sees tensors without a
gradient; deformscope's operator tells of itself.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  (registers the operator)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...fields.field import CellGrid, OffsetField
from ...ops.gradient import graded
from ...ops.observe import Sampling, intervening

Pair = tuple[int, int]


@dataclass(frozen=True)
class LiveCall:
    """One call: its input and its offset as it was made, in the graph."""

    input: Tensor
    offset: Tensor
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def field(self, name: str, cells: CellGrid, offset: Tensor | None = None) -> OffsetField:
        """Its offset (or another one in its place) as a field that carries gradients."""
        offset = self.offset if offset is None else offset
        return OffsetField.from_tensor(
            offset,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            offset_groups=offset.shape[1] // (2 * self.kernel_size[0] * self.kernel_size[1]),
            input_size=(self.input.shape[-2], self.input.shape[-1]),
            reduction=cells.reduction,
            origin=cells.origin,
            name=name,
        )


class LiveCalls(TorchFunctionMode):
    """Between ``open`` and ``close``, the calls that ``names`` of ``model`` make, by name; ``name#2`` is a second one.

    ``task_gradient`` multiplies what flows from the sampling back into the offsets; what is taken from here is before
    that. Calls without gradients, and those that gradient checkpointing makes again in a backward pass, are not seen.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], task_gradient: float = 1.0) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        own = {name.partition("#")[0] for name in names}
        self._hooked = {modules.get(name, model): name for name in own if name in modules or _is_root(model, name)}
        self._resizing = [m for m in modules.values() if type(m).__name__ == "GeneralizedRCNNTransform"]
        self._factor = task_gradient
        self._running: list[str] = []
        self._thread = threading.get_ident()
        self._opened: ExitStack | None = None
        self.calls: dict[str, LiveCall] = {}
        self.scales: list[tuple[float, float]] = []
        """Network px a photo px (y, x), each photo, where the model resizes as torchvision's detectors do."""

    def open(self) -> None:
        """Begin to see, with nothing seen."""
        self.calls, self.scales, self._running, self._thread = {}, [], [], threading.get_ident()
        with ExitStack() as stack:
            for module, name in self._hooked.items():
                before = module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name))
                after = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            for module in self._resizing:
                stack.callback(module.register_forward_hook(self._resized).remove)
            stack.enter_context(intervening(self._own))
            stack.enter_context(self)
            self._opened = stack.pop_all()

    def close(self) -> None:
        """See no more; what was seen stays."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = torch.ops.torchvision.deform_conv2d
        if (func is operator or func is operator.default) and len(args) > 10:
            tensor, weight, offset, mask, bias, *geometry = args
            pairs = [(geometry[i], geometry[i + 1]) for i in (0, 2, 4)]
            kernel = (weight.shape[-2], weight.shape[-1])
            offset = self._own(Sampling(tensor, offset, kernel, *pairs))
            args = (tensor, weight, offset, mask, bias, *geometry)
        return func(*args, **(kwargs or {}))

    def _own(self, call: Sampling) -> Tensor:
        """Keep a call, and say with which offset it is to sample."""
        again = torch._C._current_graph_task_id() != -1  # a backward pass is running
        if not again and torch.is_grad_enabled() and threading.get_ident() == self._thread:
            name = self._running[-1] if self._running else "deform_conv2d"
            number, unique = 1, name
            while unique in self.calls:
                number += 1
                unique = f"{name}#{number}"
            self.calls[unique] = LiveCall(
                call.input, call.offset, call.kernel_size, call.stride, call.padding, call.dilation
            )
        return graded(call.offset, self._factor)

    def _leave(self) -> None:
        if self._running:
            self._running.pop()

    def _resized(self, module: nn.Module, args: Any, output: Any) -> None:
        sizes = [image.shape[-2:] for image in args[0]]
        self.scales = [
            (resized[0] / size[0], resized[1] / size[1])
            for size, resized in zip(sizes, output[0].image_sizes, strict=True)
        ]


def _is_root(model: nn.Module, name: str) -> bool:
    return name == type(model).__name__

"""Record deformable convolutions in training with the graph of their offsets, for losses on these.

A function mode sees operators above autograd; a dispatch mode, below it, sees tensors without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401  (registers the operator)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..fields.field import CellGrid, OffsetField
from ..ops.deform_conv import deform_conv2d
from ..ops.geometry import check
from ..ops.gradient import graded

Pair = tuple[int, int]


@dataclass(frozen=True)
class LiveCall:
    """A call: its input, and its offset as a node of the graph."""

    input: Tensor
    offset: Tensor
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def field(self, name: str, cells: CellGrid, offset: Tensor | None = None) -> OffsetField:
        """The offset (or another one in its place) as a field with gradients."""
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
    """Records the calls that the modules ``names`` of ``model`` make between ``open`` and ``close``; ``name#2`` is a
    second one.

    ``task_gradient`` is a factor on the gradient from the sampling into the offsets; the recorded offsets are before
    it. Calls without gradients, and those that gradient checkpointing repeats in a backward pass, are not recorded.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], task_gradient: float = 1.0) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        own = {name.partition("#")[0] for name in names}
        self._hooked = {modules.get(name, model): name for name in own if name in modules or _is_root(model, name)}
        self._resizing = [m for m in modules.values() if type(m).__name__ == "GeneralizedRCNNTransform"]
        self._factor = task_gradient
        self._running: list[str] = []
        self._opened: ExitStack | None = None
        self.calls: dict[str, LiveCall] = {}
        self.scales: list[tuple[float, float]] = []
        """Network px per photo px (y, x) of each photo, if the model resizes as torchvision's detectors do."""

    def open(self) -> None:
        """Start recording, without earlier records."""
        self.calls, self.scales, self._running = {}, [], []
        with ExitStack() as stack:
            for module, name in self._hooked.items():
                before = module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name))
                after = module.register_forward_hook(lambda *_: self._leave(), always_call=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            for module in self._resizing:
                stack.callback(module.register_forward_hook(self._resized).remove)
            stack.enter_context(self)
            self._opened = stack.pop_all()

    def close(self) -> None:
        """Stop recording; records are kept."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = torch.ops.torchvision.deform_conv2d
        # The mode is off while this runs, so that calls passed on to torchvision's operator are not recorded again.
        if func is deform_conv2d:
            tensor, offset, *rest = args
            geometry = check(*args)
            pairs = geometry.stride, geometry.padding, geometry.dilation
            self._keep(LiveCall(tensor, offset, geometry.kernel_size, *pairs))
            args = (tensor, graded(offset, self._factor), *rest)
        elif (func is operator or func is operator.default) and len(args) > 10:
            tensor, weight, offset, *rest = args
            pairs = ((rest[2], rest[3]), (rest[4], rest[5]), (rest[6], rest[7]))
            self._keep(LiveCall(tensor, offset, (weight.shape[-2], weight.shape[-1]), *pairs))
            args = (tensor, weight, graded(offset, self._factor), *rest)
        return func(*args, **(kwargs or {}))

    def _keep(self, call: LiveCall) -> None:
        again = torch._C._current_graph_task_id() != -1  # a backward pass is running
        if again or not torch.is_grad_enabled():
            return
        name = self._running[-1] if self._running else "deform_conv2d"
        number, unique = 1, name
        while unique in self.calls:
            number += 1
            unique = f"{name}#{number}"
        self.calls[unique] = call

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

"""Record deformable convolutions in training with the graph of their offsets, for losses on these."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.gradient import graded
from ..ops.intercept import Inputs, intercepting


class LiveCall(NamedTuple):
    """What a call gets, as nodes of the graph."""

    input: Tensor
    offset: Tensor


class LiveCalls:
    """Records the calls that the modules ``names`` of ``model`` make between ``open`` and ``close``; ``name#2`` is a
    second one.

    ``task_gradient`` is a factor on the gradient from the sampling into the offsets; the recorded offsets are before
    it. Calls without gradients, and those that gradient checkpointing repeats in a backward pass, are not recorded.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], task_gradient: float = 1.0) -> None:
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
            stack.enter_context(intercepting(self._seen))
            self._opened = stack.pop_all()

    def close(self) -> None:
        """Stop recording; records are kept."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _seen(self, number: int, call: Inputs) -> Inputs:
        again = torch._C._current_graph_task_id() != -1  # a backward pass is running
        if torch.is_grad_enabled() and not again:
            self._keep(LiveCall(call.input, call.offset))
        return call._replace(offset=graded(call.offset, self._factor))

    def _keep(self, call: LiveCall) -> None:
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

"""What samplers read that are modules of plain operators: their sampled values, live.

An attribution needs no modulation where the sampled values themselves can be had: a_n = ⟨v_n, ∂y/∂v_n⟩ of the value v_n
that point n reads. A ``p_conv`` module hands its values to its last convolution, a kernel's as a block of k × k;
``DCNv3_pytorch`` and DAT get them from ``grid_sample``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..recording.convolutions import by_rows
from ..recording.modules import MODULES, reader_of


@dataclass
class SampledCall:
    """One call of such a module."""

    module: nn.Module
    place: int = 0
    """Number of its field in the block."""
    values: Tensor | None = None
    """What its points read: [1 c h·k w·k] before a last convolution, or [g c ...] from ``grid_sample``."""
    moves: Tensor | None = None
    """What moved them: offsets [1 2·k h w], all dy first, or the grid [g ... xy] in −1..1."""
    cells: Tensor | None = None
    """Of a grid: its units (y, x) per cell of the map; None for offsets."""

    @property
    def wanted(self) -> tuple[Tensor, Tensor]:
        """The tensors of which gradients are needed."""
        assert self.values is not None and self.moves is not None
        return self.values, self.moves

    def attribution(self, field: OffsetField, values: Tensor | None, moves: Tensor | None) -> tuple[Tensor, Tensor]:
        """a_n [g k h w] and ∂y/∂Δp_n [g k h w 2] of the gradients of ``wanted``; None: y does not depend on them."""
        v, m = self.wanted
        added = (v * (torch.zeros_like(v) if values is None else values)).sum(dim=1).detach()
        slope = (torch.zeros_like(m) if moves is None else moves).detach()
        _, g, k, h, w, _ = field.offset.shape
        if self.cells is None:
            rows, columns = field.kernel_size
            points = added.view(h, rows, w, columns).permute(1, 3, 0, 2).reshape(1, k, h, w)
            return points, slope.view(2, k, h, w).permute(1, 2, 3, 0)[None]
        slope = slope.flip(-1) * self.cells
        if k == 1:
            return added.view(g, 1, h, w), slope.view(g, 1, h, w, 2)
        points, slope = (
            one.view(g, h, w, -1, size).permute(1, 2, 0, 3, 4)[None] for one, size in ((added, 1), (slope, 2))
        )
        points, slope = (by_rows(one, field.kernel_size, 0.0)[0].permute(2, 3, 0, 1, 4) for one in (points, slope))
        return points[..., 0], slope


@contextmanager
def sampled_calls(model: nn.Module, fields: Fields) -> Iterator[list[SampledCall]]:
    """Collect the calls of such modules of ``model`` in the block; ``fields`` are those of a capture around it."""
    found: list[SampledCall] = []
    running: list[SampledCall] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(SampledCall(module))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        call = running.pop()
        call.place = len(fields)
        if call.values is not None and call.moves is not None and call.moves.requires_grad:
            found.append(call)

    def reads(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if running and getattr(running[-1].module, "conv", None) is module:
            running[-1].values = args[0]

    def moved(module: nn.Module, args: Any, output: Tensor) -> None:
        if running and getattr(running[-1].module, "p_conv", None) is module:
            running[-1].moves = output

    hooks: list[Any] = []
    for module in model.modules():
        if reader_of(module) not in MODULES.values():
            continue
        hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        if isinstance(getattr(module, "p_conv", None), nn.Module):
            hooks += [
                module.get_submodule("conv").register_forward_pre_hook(reads),
                module.get_submodule("p_conv").register_forward_hook(moved),
            ]
    try:
        with _GridSample(running) if hooks else nullcontext():
            yield found
    finally:
        for hook in hooks:
            hook.remove()


class _GridSample(TorchFunctionMode):
    """Keeps what the first ``grid_sample`` of a running module reads; others read tables."""

    def __init__(self, running: list[SampledCall]) -> None:
        super().__init__()
        self._running = running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is F.grid_sample and self._running and self._running[-1].values is None:
            given = dict(zip(("input", "grid", "mode", "padding_mode", "align_corners"), args, strict=False)) | kwargs
            size = out.new_tensor(given["input"].shape[-2:])
            call = self._running[-1]
            call.values, call.moves = out, given["grid"]
            call.cells = 2 / (size - 1 if given.get("align_corners") else size)
        return out

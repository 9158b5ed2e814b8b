"""What attributions are gradients of, live while a model runs: ones, or the values that points read.

Operators get ones in their modulation (:mod:`deformscope.ops.intercept`). Here are the modules that are made of plain
operators, told by the readers of :mod:`deformscope.recording.modules`:

- deformable attention: the softmax of its layer ``attention_weights`` is multiplied by ones;
- the copied ``DeformConv2d`` (``p_conv``): the map v that its last convolution reads, a kernel as a block of k × k;
- ``DCNv3_pytorch`` and DAT: the first result v of ``grid_sample``.

Of values, a_n = ⟨v_n, ∂y/∂v_n⟩ over the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field as dataclass_field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..fields.places import Point
from ..recording.attention import attention
from ..recording.convolutions import by_rows
from ..recording.modules import Reader, dat, dcnv3_module, p_conv, reader_of

SOFTMAX = F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax

Layout = Callable[[OffsetField, Tensor], Float[Tensor, "g k h w c"]]
"""From gradients in the order of a sampler's tensors to the field's order: one component of ones, two of places."""


@dataclass(frozen=True)
class Factor:
    """What the points of one call of a sampler are multiplied by, or what they read."""

    live: Tensor
    """Ones, or values whose second dimension is channels."""
    places: Tensor | None = None
    """What decides where a convolution samples."""
    layout: Layout | None = None
    """Of both, in a convolution."""
    values: bool = False

    @property
    def points(self) -> int:
        """How many points there are."""
        return self.live.numel() // (self.live.shape[1] if self.values else 1)

    def attributed(self, gradient: Tensor) -> Tensor:
        """Each point's a_n, from the gradient of ``live``."""
        return (gradient * self.live.detach().to(gradient)).sum(dim=1) if self.values else gradient


def of_operator(field: OffsetField, gradient: Tensor) -> Float[Tensor, "g k h w c"]:
    """The order of torchvision's operator."""
    _, g, k, h, w, _ = field.offset.shape
    return gradient.reshape(g, k, -1, h, w).movedim(2, -1)


def _of_tiles(field: OffsetField, gradient: Tensor) -> Float[Tensor, "g k h w c"]:
    """Kernels laid side by side, [h·rows w·columns]; offsets are planar, all dy before all dx."""
    _, _, k, h, w, _ = field.offset.shape
    if gradient.numel() == 2 * k * h * w:
        return gradient.reshape(1, 2, k, h, w).movedim(1, -1)
    rows, columns = field.kernel_size
    return gradient.reshape(h, rows, w, columns).permute(1, 3, 0, 2).reshape(1, k, h, w, 1)


def _of_grid(per_cell: Point) -> Layout:
    """Groups, cells and points, in each of these (x, y), counted by a grid in so many units per cell (y, x)."""

    def layout(field: OffsetField, gradient: Tensor) -> Float[Tensor, "g k h w c"]:
        _, g, _, h, w, _ = field.offset.shape
        points = _points(field) // (g * h * w)
        values = gradient.reshape(g, h, w, points, -1)
        if values.shape[-1] == 2:
            values = values.flip(-1) * values.new_tensor(per_cell)
        return by_rows(values.movedim(0, 2)[None], field.kernel_size, 0.0)[0].permute(2, 3, 0, 1, 4)

    return layout


def _points(field: OffsetField) -> int:
    """The number of points that are sampled for one image."""
    _, g, k, h, w, _ = field.offset.shape
    return g * (k - len(field.absent)) * h * w


@dataclass
class Factors:
    """By a module's name: the factors of each of its calls."""

    calls: dict[str, list[Factor]]

    def of(self, fields: Fields) -> dict[str, Factor]:
        """Those of captured calls, by the names that capture gave them."""
        found, seen = {}, dict.fromkeys(self.calls, 0)
        counts = {name: _points(field) for name, field in fields.items()}
        counts |= {name: 0 if one.weights is None else one.weights.numel() for name, one in fields.attention.items()}
        for name, count in counts.items():
            module = name if name in self.calls else name.rpartition("#")[0]
            number = seen.get(module, 0)
            if number < len(self.calls.get(module, ())) and self.calls[module][number].points == count:
                found[name] = self.calls[module][number]
            seen[module] = number + 1
        return found


@dataclass
class _Running:
    """A call of a sampler that has not ended."""

    name: str
    reader: Reader
    logits: Tensor | None = None
    places: Tensor | None = None
    factors: list[Factor] = dataclass_field(default_factory=list)


@contextmanager
def live_factors(model: nn.Module) -> Iterator[Factors]:
    """Multiply the weights of ``model``'s attention by ones, and keep what its other samplers read, in the block.

    Where a compiled kernel does the sampling, or takes the softmax (DCNv4's), there are none.
    """
    known = {
        id(module): (name or type(module).__name__, reader)
        for name, module in model.named_modules()
        if (reader := reader_of(module)) is not None
    }
    found = Factors({name: [] for name, _ in known.values()})
    running: list[_Running] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(_Running(*known[id(module)]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        call = running.pop()
        found.calls[call.name] += call.factors[:1]

    def logits(module: nn.Module, args: Any, output: Tensor) -> None:
        if running:
            running[-1].logits = output

    def offsets(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not running:
            return None
        running[-1].places = _live(output)
        return running[-1].places

    def tiles(module: nn.Module, args: Any) -> None:
        if running and running[-1].places is not None and args and args[0].requires_grad:
            running[-1].factors.append(Factor(args[0], running[-1].places, _of_tiles, values=True))

    hooks = []
    for module in model.modules():
        if id(module) not in known:
            continue
        hooks.append(module.register_forward_pre_hook(enter))
        hooks.append(module.register_forward_hook(leave, always_call=True))
        reader = known[id(module)][1]
        if reader is attention:
            hooks.append(module.get_submodule("attention_weights").register_forward_hook(logits))
        elif reader is p_conv:
            hooks.append(module.get_submodule("p_conv").register_forward_hook(offsets))
            hooks.append(module.get_submodule("conv").register_forward_pre_hook(tiles))
    try:
        with _Functions(running) if hooks else nullcontext():
            yield found
    finally:
        for hook in hooks:
            hook.remove()


class _Functions(TorchFunctionMode):
    """Changes the softmax of weights, and keeps the values of ``grid_sample``, in the innermost sampler that runs."""

    def __init__(self, running: list[_Running]) -> None:
        super().__init__()
        self._running = running

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = self._running[-1] if self._running else None
        if call is not None and func is F.grid_sample and call.reader in (dcnv3_module, dat) and not call.factors:
            return _sampled(call, *args, **kwargs)
        out = func(*args, **kwargs)
        # Only the first softmax of these logits is that of the weights.
        if call is None or func not in SOFTMAX or call.logits is None or out.numel() != call.logits.numel():
            return out
        call.logits = None
        ones = torch.ones_like(out, requires_grad=True)
        call.factors.append(Factor(ones))
        return out * ones


def _sampled(
    call: _Running,
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    grid = _live(grid)
    out = F.grid_sample(input, grid, mode, padding_mode, align_corners)
    height, width = (2 / max(size - bool(align_corners), 1) for size in input.shape[-2:])
    if out.requires_grad:
        call.factors.append(Factor(out, grid, _of_grid((height, width)), values=True))
    return out


def _live(tensor: Tensor) -> Tensor:
    """The tensor, or an equal one, with a gradient."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()

"""Attribute one output to the points of deformable attention, through their weights (Zhu et al., ICLR 2021, Eq. 2-3).

A head's result is z = Σ_n A_n · v(P_n), with the weights A and what the points read, v(P_n). Ones multiply the weights,
and their gradient is a_n = A_n · ⟨∂y/∂z, v(P_n)⟩, exact, for each point of each query and head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..fields.attention import AttentionField
from ..recording.attention import is_attention

SOFTMAX = F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax


@dataclass(frozen=True)
class AttentionAttribution:
    """What the points of one call of deformable attention add to the explained output y.

    For each of q queries, h heads and p points: a_n = A_n · ⟨∂y/∂z, v(P_n)⟩, where z is the head's result before the
    module's last projection, v(P_n) the value that point n reads and A_n its weight. The a_n of a query and head sum to
    ⟨∂y/∂z, z⟩. That the weights of a head sum to 1 is left out of it.

    Example:
        >>> why = ds.explain(model, pixels, of=lambda out: out.logits[0, 17, 3])
        >>> layer = list(why.attention.values())[-1]
        >>> layer.by_query().abs().argmax()        # the query itself, in a last layer
        tensor(17)
    """

    field: AttentionField
    """The layer's points, of one image."""
    points: Float[Tensor, "q h p"]
    """a_n, in units of y."""

    @property
    def total(self) -> float:
        """The sum over all queries."""
        return float(self.points.double().sum())

    def by_query(self) -> Float[Tensor, " q"]:
        """Each query's sum over its heads and points."""
        return self.points.sum(dim=(1, 2))

    def by_head(self) -> Float[Tensor, " h"]:
        """Each head's sum over queries and points."""
        return self.points.sum(dim=(0, 2))

    def by_level(self) -> Float[Tensor, " l"]:
        """Each map's sum over queries, heads and the points that read it."""
        found = self.points.new_zeros(len(self.field.level_sizes))
        return found.index_add(0, self.field.level, self.points.sum(dim=(0, 1)))

    def strongest_query(self) -> int:
        """The query whose points' magnitudes sum to most: in a decoder's last layer, the one that made the output."""
        return int(self.points.abs().sum(dim=(1, 2)).argmax())

    def places(self) -> Float[Tensor, "q h p 2"]:
        """Where the points lie, (y, x) in photo px."""
        return self.field.to_pixels(self.field.points)[0]


@dataclass
class Ones:
    """By a module's name: the ones that multiplied the weights of each of its calls."""

    calls: dict[str, list[Tensor]]

    def of(self, fields: dict[str, AttentionField]) -> dict[str, Tensor]:
        """Those of captured calls, by the names that capture gave them."""
        found, seen = {}, dict.fromkeys(self.calls, 0)
        for name, field in fields.items():
            module = name if name in self.calls else name.rpartition("#")[0]
            number = seen.get(module, 0)
            if field.weights is not None and number < len(self.calls.get(module, ())):
                ones = self.calls[module][number]
                if ones.numel() == field.weights.numel():
                    found[name] = ones
            seen[module] = number + 1
        return found


@contextmanager
def weights_times_ones(model: nn.Module) -> Iterator[Ones]:
    """Multiply the weights of every deformable attention of ``model`` by ones, with gradients, while the block runs.

    The weights are told by the softmax that the module takes of its layer ``attention_weights``; where a kernel takes
    it (DCNv4's), there are none.
    """
    modules = {id(one): name or type(one).__name__ for name, one in model.named_modules() if is_attention(one)}
    found = Ones({name: [] for name in modules.values()})
    running: list[tuple[str, list[Tensor]]] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append((modules[id(module)], []))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    def logits(module: nn.Module, args: Any, output: Tensor) -> None:
        if running:
            running[-1][1].append(output)

    hooks = []
    for module in model.modules():
        if id(module) in modules:
            hooks += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave, always_call=True),
                module.get_submodule("attention_weights").register_forward_hook(logits),
            ]

    def multiply(weights: Tensor) -> Tensor:
        if not running or not running[-1][1] or weights.numel() != running[-1][1][-1].numel():
            return weights
        running[-1][1].clear()  # only the first softmax of these logits is that of the weights
        ones = torch.ones_like(weights, requires_grad=True)
        found.calls[running[-1][0]].append(ones)
        return weights * ones

    try:
        with _Softmax(multiply) if hooks else nullcontext():
            yield found
    finally:
        for hook in hooks:
            hook.remove()


class _Softmax(TorchFunctionMode):
    """Changes what every softmax gives."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return self._change(out) if func in SOFTMAX else out

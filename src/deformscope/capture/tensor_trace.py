"""Follow tensors through a network's operators: where their cells lie, and what they came through.

Receptive fields' centres give each map's cells exact places in the image; where
the trail breaks (tokens, reshapes), the grid falls back on the ratio of the sizes. What an ``nn.Conv2d`` puts out
carries its name through views, slices, sums, clamps and the like, up to the offsets that an operator gets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils.weak import WeakTensorKeyDictionary

from ..fields.field import CellGrid, Pair, Point
from ..ops.observe import DeformCall
from .grid_rules import RULES
from .operator_watch import in_backward, seen_from_mode, within_watched

TAKEN_APART = "aten::_unsafe_index"
"""What other dispatch modes make of a resize that they take apart, which says no more how cells were moved."""


class Trail(NamedTuple):
    """What is known of one tensor."""

    grid: CellGrid | None = None
    call: int | None = None
    """The number of the deformable call through which it came last, on whichever way."""
    convolutions: frozenset[str] = frozenset()
    """The ``nn.Conv2d`` modules that made it, by name."""
    replaced: float | None = None
    """Share of its values that ``nan_to_num`` replaced; None: it came through none."""

    def counted_from(self, first: int) -> Trail:
        """The same with deformable calls counted from the one of this number."""
        return self if self.call is None else self._replace(call=self.call - first)


NOTHING = Trail()
Input = tuple[int, Pair] | None
"""Channels and size of what a network got; None: nothing yet."""


class TensorTrace:
    """The trails of all tensors seen so far, kept only as long as the tensors themselves.

    The first tensor that a convolution, pooling or resize meets is taken for the network's input, and later ones with
    as many channels for the next inputs.
    """

    def __init__(self) -> None:
        self._trails = WeakTensorKeyDictionary()
        self.input: Input = None
        self.taken_apart = False
        """Resizes came in pieces, so that the places of cells after them are guessed by the ratio of the sizes."""

    def trail(self, tensor: Tensor) -> Trail:
        """What is known of a tensor."""
        return self._trails.get(tensor, NOTHING)

    def grid(self, tensor: Tensor) -> CellGrid:
        """Where the cells of a map ``[... c h w]`` lie in the network's input."""
        trail = self.trail(tensor)
        if trail.grid is None:
            trail = trail._replace(grid=self._adopt(tensor))
            self._trails[tensor] = trail
        assert trail.grid is not None
        return trail.grid

    def moved(self, values: Any) -> bool:
        """Whether any of these tensors is more than an input: cells elsewhere, or made by a deformable convolution."""
        return any(self.trail(tensor) not in (NOTHING, Trail(CellGrid())) for tensor in tensors_in(values))

    def note(self, tensor: Tensor, trail: Trail) -> None:
        """Set what is known of a tensor."""
        self._trails[tensor] = trail

    def name(self, tensor: Tensor, convolution: str) -> None:
        """Note that the convolution of this name put a tensor out."""
        self._trails[tensor] = self.trail(tensor)._replace(convolutions=frozenset([convolution]), replaced=None)

    def replaced(self, tensor: Tensor, share: float) -> None:
        """Note that so much of a tensor's values has been replaced."""
        trail = self.trail(tensor)
        self._trails[tensor] = trail._replace(replaced=max(share, trail.replaced or 0.0))

    def misalignment(self, call: DeformCall, offset: Tensor) -> Point:
        """How far (y, x) the cells of a call's ``offset`` map lie from the cells that they move, in input cells."""
        cells, made = self.grid(call.input), self.grid(offset)
        moved = cells.strided(call.kernel_size, call.stride, call.padding, call.dilation)
        apart = []
        for axis, size in enumerate(offset.shape[-2:]):
            gaps = [
                made.origin[axis] + made.reduction[axis] * c - moved.origin[axis] - moved.reduction[axis] * c
                for c in (0, size - 1)
            ]
            apart.append(max(gaps, key=abs) / cells.reduction[axis])
        return apart[0], apart[1]

    def see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Note what is known of what the operator ``name`` made out of ``args``."""
        made = [out] if isinstance(out, Tensor) else list(tensors_in(out))
        if not made:
            return
        sources, known = [], []
        for tensor in tensors_in((args, kwargs) if kwargs else args):
            trail = self._trails.get(tensor)
            if trail is not None:
                sources.append(tensor)
                known.append(trail)
        self.taken_apart |= name == TAKEN_APART
        rule = RULES.get(name)
        if rule is None and len(known) == 1 and out is made[0] and "conv" not in name:
            (source,) = sources
            if source.ndim >= 3 and out.ndim >= 3 and source.shape[-2:] == out.shape[-2:]:
                self._trails[out] = known[0]
                return
        if rule is not None and args and isinstance(args[0], Tensor) and args[0].ndim >= 3:
            moved: CellGrid | None = rule(self.grid(args[0]), args, kwargs, made[0])
        elif known:
            rule, moved = None, None
        else:
            return
        calls = [trail.call for trail in known if trail.call is not None]
        call = max(calls) if calls else None
        # Convolutions begin a new trail of names; everything else hands on its inputs'.
        handed = () if "conv" in name else known
        names = frozenset().union(*(trail.convolutions for trail in handed))
        shares = [trail.replaced for trail in handed if trail.replaced is not None]
        share = max(shares) if shares else None
        for tensor in made:
            if tensor.ndim < 3:
                trail = Trail(None, None, names, share)
            else:
                grid = moved if rule is not None else self._kept(tensor, sources, known)
                if grid is None:  # what it is made of may have been seen
                    grid = self.trail(tensor).grid
                trail = Trail(grid, call, names, share)
            if trail != NOTHING:
                self._trails[tensor] = trail

    @staticmethod
    def _kept(tensor: Tensor, sources: list[Tensor], known: list[Trail]) -> CellGrid | None:
        """The grid of the first source of the same height and width."""
        size = tensor.shape[-2:]
        for source, trail in zip(sources, known, strict=True):
            if trail.grid is not None and source.ndim >= 3 and source.shape[-2:] == size:
                return trail.grid
        return None

    def _adopt(self, tensor: Tensor) -> CellGrid:
        size, channels = (tensor.shape[-2], tensor.shape[-1]), tensor.shape[-3]
        if self.input is None or self.input[0] == channels:
            self.input = channels, size
            return CellGrid()
        return by_ratio(self.input[1], size)


def by_ratio(whole: Pair, size: Pair) -> CellGrid:
    """The grid of a map of which only the size is known, beside the network's input's."""
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
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple, dict)):
                yield from tensors_in(value)
    elif isinstance(values, dict):
        yield from tensors_in(list(values.values()))


class EveryOperator(TorchDispatchMode):
    """Shows a trace every operator of this thread, but for the watched ones, while it is on."""

    def __init__(self, trace: TensorTrace) -> None:
        super().__init__()
        self.trace = trace
        self.on = False
        self._depth = len(_user_modes())
        self._names: dict[Any, str] = {}

    def switch(self, on: bool) -> None:
        """Look at operators from now on, or no longer.

        Two switches belong together like a block's begin and end, and nothing between them may outlast the second:
        ``torch.inference_mode`` puts the state of the stack of modes back when it ends. Modes that the model's own code
        entered since the first lie above this one, and stay there, since their exits take the uppermost.
        """
        if on == self.on:
            return
        self.on = on
        modes = _user_modes()
        above = [_pop_mode() for _ in modes[self._depth :]]
        if on:
            _push_mode(self)
        for mode in reversed(above):
            if mode is not self:
                _push_mode(mode)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while it is on, and the way around the compiler costs a third of this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if within_watched() or in_backward():
            return func(*args, **kwargs)
        out = seen_from_mode(func, *args, **kwargs)
        name = self._names.get(func)
        if name is None:
            name = self._names[func] = func._schema.name
        self.trace.see(name, args, kwargs, out)
        return out


def _user_modes() -> list[TorchDispatchMode]:
    """This thread's modes, but for those that have places of their own (fake tensors and the like)."""
    return [mode for mode in _get_current_dispatch_mode_stack() if not getattr(mode, "is_infra_mode", bool)()]


def share_non_finite(tensor: Tensor) -> float:
    """Share of the values that are NaN or infinite."""
    return 1.0 - torch.isfinite(tensor).float().mean().item() if tensor.numel() else 0.0

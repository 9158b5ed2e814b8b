"""What tracing a model's forward passes has taught, so that later passes of the same kind need no trace.

A pass is announced by the shapes of the model's arguments, and told by its steps: the operators that move grids, in
their order, with all shapes (but the number of images), geometry and the weights that they use. These decide every
grid. As one number, which each further step changes, they name each deformable call; a call of which the number is not
known is of a pass that was not traced.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field as dataclass_field
from typing import Any

from torch import Size, Tensor, nn

from ..fields.field import CellGrid, OffsetSource, Pair, Placement
from .grid_rules import RULES, Shaped
from .tensor_trace import Input, Trail, by_ratio

Signature = tuple[Any, ...]
"""Of a pass that begins: the shapes of what it is called with."""

MOST_CALLS, MOST_STRUCTURES = 10_000, 8
"""Kept for a model at most: calls, and states of its modules."""
MOST_MISSES = 2
"""So often may a pass turn out to be another one than announced; then all that are announced like it are traced."""


@dataclass(frozen=True)
class TracedCall:
    """What a trace says of one deformable call."""

    name: str
    """Of the module that made it."""
    cells: CellGrid
    below: int | None
    """Number, within the pass, of the deformable call through which its input came last; None: through none."""
    source: OffsetSource
    placements: tuple[Placement, ...]
    """How the model's own transform has placed its photos."""


@dataclass
class KnownPasses:
    """What is known of a model whose modules are these, in these modes."""

    modules: list[weakref.ref[nn.Module]]
    training: list[bool]
    signatures: set[Signature] = dataclass_field(default_factory=set)
    calls: dict[int, TracedCall] = dataclass_field(default_factory=dict)
    ends: dict[int, tuple[Input, tuple[Trail, ...]]] = dataclass_field(default_factory=dict)
    """What was the input, and the trails of what the model returned, calls counted within the pass; by all steps."""
    misses: dict[Signature, int] = dataclass_field(default_factory=dict)

    def fits(self, modules: Sequence[nn.Module]) -> bool:
        """Whether a model of these modules is the same still."""
        return (
            len(modules) == len(self.modules)
            and all(ref() is module for ref, module in zip(self.modules, modules, strict=True))
            and self.training == [module.training for module in modules]
        )

    def learn(
        self, signature: Signature, calls: dict[int, TracedCall], steps: int, end: tuple[Input, tuple[Trail, ...]]
    ) -> None:
        """Keep a traced pass."""
        if self.misses.get(signature, 0) >= MOST_MISSES:
            return
        if len(self.calls) > MOST_CALLS:
            self.signatures.clear()
            self.calls.clear()
            self.ends.clear()
        self.signatures.add(signature)
        self.calls.update(calls)
        self.ends[steps] = end

    def miss(self, signature: Signature) -> None:
        """A pass announced itself as known and then took steps that are not."""
        self.signatures.discard(signature)
        self.misses[signature] = self.misses.get(signature, 0) + 1


_lock = threading.Lock()
_models: weakref.WeakKeyDictionary[nn.Module, list[KnownPasses]] = weakref.WeakKeyDictionary()


def known_passes(model: nn.Module, modules: Sequence[nn.Module]) -> KnownPasses:
    """What is known of ``model``, whose modules these are; forgotten with the model."""
    with _lock:
        structures = _models.setdefault(model, [])
        for known in structures:
            if known.fits(modules):
                return known
        new = KnownPasses([weakref.ref(module) for module in modules], [module.training for module in modules])
        structures.append(new)
        del structures[:-MOST_STRUCTURES]
        return new


def forget(model: nn.Module) -> None:
    """Trace the model's next pass anew."""
    _models.pop(model, None)


def signature(values: Any) -> Signature | None:
    """The shapes of a call's arguments, of images but for their number; None: not all are known, or there are none."""
    found: list[Any] = []
    return tuple(found) if _signed(values, found) and any(isinstance(one, Shaped) for one in found) else None


def _signed(value: Any, found: list[Any]) -> bool:
    if isinstance(value, Tensor):
        found.append(Shaped(value.shape[1:]))
    elif isinstance(value, (list, tuple)):
        found.append(len(value))
        return all(_signed(one, found) for one in value)
    elif isinstance(value, dict):
        found.append(tuple(value))
        return all(_signed(one, found) for one in value.values())
    elif type(value).__module__.split(".")[0] in ("numpy", "PIL"):
        shape = getattr(value, "shape", None) or getattr(value, "size", None)
        found.append(Shaped(shape) if isinstance(shape, tuple) else shape)
    else:
        found.append(value)
        return value is None or isinstance(value, (bool, int, float))
    return True


class Steps:
    """What one pass has gone through so far."""

    def __init__(self, start: Signature | None, weights: Mapping[int, Any]) -> None:
        """``weights``: something that stays the same from pass to pass, by a parameter's ``id``."""
        self.number = hash(start)
        self._weights = weights
        self._moves: list[tuple[Any, ...]] = []

    def join(self, steps: int) -> None:
        """A pass within this one has ended, with this number."""
        self.number = hash((self.number, steps))

    def call(self, name: str, moves: bool, args: tuple[Any, ...], offset: Tensor) -> None:
        """A deformable call that no operator is has run; it ``moves`` the grid of ``args`` to that of ``offset``."""
        if moves:
            self.move(name, args, {}, offset)
        else:
            self.number = hash((self.number, name, args[0].shape[1:], offset.shape[1:]))

    def move(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        """An operator that moves grids has run.

        Hashed is the map's shape without the number of images, on which no grid depends, and in the place of a weight
        that belongs to the model its owner. This runs a hundred times in a pass of 40 ms, so it calls little.
        """
        shape, second, owner = args[0].shape[1:], None, None
        if len(args) > 1:
            second = args[1]
            owner = self._weights.get(id(second))
            if owner is None:
                second = owner = second.shape[1:] if isinstance(second, Tensor) else _frozen(second)
        rest = tuple(
            [tuple(one) if type(one) is list else None if isinstance(one, Tensor) else one for one in args[2:]]
        )
        options = tuple(kwargs.items())
        self.number = hash((self.number, name, shape, owner, rest, options))
        self._moves.append((name, shape, second, rest, options, out.shape))

    def cells(self, size: Pair) -> tuple[CellGrid, bool]:
        """Where the cells of a map of this size lie, told by sizes alone; and whether that leaves no doubt.

        Maps of one size have one grid in most networks; where they have several, the latest is taken.
        """
        grids: dict[Pair, tuple[CellGrid, bool]] = {}
        first: tuple[int, Pair] | None = None
        for name, shape, second, rest, options, put_out in self._moves:
            args, out = (_shaped(shape), _shaped(second), *rest), Shaped(put_out)
            channels, before, after = args[0].shape[-3], _size(args[0]), _size(out)
            if first is None or (before not in grids and channels == first[0]):
                first = channels, before
                grids[before] = CellGrid(), True
            grid, certain = grids.setdefault(before, (by_ratio(first[1], before), True))
            moved = RULES[name](grid, args, dict(options), out)
            grids[after] = moved, certain and grids.get(after, (moved, True)) == (moved, True)
        return grids.get(size, (by_ratio(size if first is None else first[1], size), False))


@dataclass
class Pass:
    """One forward pass of the model, or what runs around it."""

    signature: Signature | None
    first: int
    """Number of its first deformable call in the block."""
    steps: Steps
    recognized: bool = False
    """It is known from an earlier pass, and not traced."""
    steady: bool = True
    """What is traced of it would be the same another time."""
    missed: bool = False
    """It was taken for a known one, and is none."""
    attended: bool = False
    """Deformable attention ran in it."""
    calls: dict[int, TracedCall] = dataclass_field(default_factory=dict)


def _frozen(value: Any) -> Any:
    """Something to hash."""
    return tuple(value) if isinstance(value, list) else value


def _shaped(value: Any) -> Any:
    """Of a shape without its first size, something that has a whole one."""
    return Shaped((0, *value)) if isinstance(value, Size) else value


def _size(shaped: Shaped) -> Pair:
    return shaped.shape[-2], shaped.shape[-1]

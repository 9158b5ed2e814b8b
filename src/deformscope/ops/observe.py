"""Where deformscope's own operator reports its calls, since no dispatcher sees it as one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Pair = tuple[int, int]
Step = tuple[float, float]
"""Whole numbers for convolutions."""


@dataclass(frozen=True)
class DeformCall:
    """One call of a deformable convolution, and its geometry: its tensors as torchvision's operator gets them."""

    input: Tensor
    weight: Tensor | None
    """None where no weights belong to the kernel's points."""
    offset: Tensor
    mask: Tensor | None
    output: Tensor
    kernel_size: Pair
    stride: Step
    padding: Step
    dilation: Pair
    made: Tensor | None = None
    """The offsets as the model made them, where they had to be put into torchvision's order; None: they are these."""
    channels_last: Tensor | None = None
    """The input as the model had it, where its channels came last."""
    absent: tuple[int, ...] = ()
    """Points of the kernel at which nothing is sampled."""
    places_output: bool = True
    """The output has a cell at each place to which a kernel belongs, and no others."""


Observer = Callable[[DeformCall], None]
Away = Callable[[], AbstractContextManager[Any]]
_observers: ContextVar[tuple[tuple[Observer, Away], ...]] = ContextVar("observers", default=())


@contextmanager
def observing(observer: Observer, looking_away: Away = nullcontext) -> Iterator[None]:
    """Have ``observer`` called with every call of deformscope's operator while the block runs.

    ``looking_away`` is entered while the operator computes, for observers that see the operators that it is made of.
    """
    token = _observers.set((*_observers.get(), (observer, looking_away)))
    try:
        yield
    finally:
        _observers.reset(token)


def observed() -> bool:
    """Whether anybody wants to know of calls."""
    return bool(_observers.get())


@contextmanager
def unseen() -> Iterator[None]:
    """Make a call in this block, and report it after."""
    with ExitStack() as stack:
        for _, looking_away in _observers.get():
            stack.enter_context(looking_away())
        yield


def report(call: DeformCall) -> None:
    """Tell the observers of a call."""
    for observer, _ in _observers.get():
        observer(call)

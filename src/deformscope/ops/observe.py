"""Where deformscope's own operator reports its calls, since no dispatcher sees it as one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class DeformCall:
    """One call of a deformable convolution: its tensors as the operator got them, and its geometry."""

    input: Tensor
    offset: Tensor
    mask: Tensor | None
    output: Tensor
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


_observers: ContextVar[tuple[Callable[[DeformCall], None], ...]] = ContextVar("observers", default=())


@contextmanager
def observing(observer: Callable[[DeformCall], None]) -> Iterator[None]:
    """Have ``observer`` called with every call of deformscope's operator while the block runs."""
    token = _observers.set((*_observers.get(), observer))
    try:
        yield
    finally:
        _observers.reset(token)


def report(call: DeformCall) -> None:
    """Tell the observers, if any, of a call that torchvision's operator did not make."""
    for observer in _observers.get():
        observer(call)

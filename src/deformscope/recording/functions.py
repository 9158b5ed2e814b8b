"""Autograd Functions in which compiled samplers run, whichever package they came from.

No mode sees ``torch.autograd.Function.apply``, and none sees a compiled kernel within. So while a block is open,
``forward`` of every loaded Function that has an argument named like a sampler's is replaced; an ``apply`` that somebody
has kept is seen alike, since it looks its ``forward`` up. A Function that is defined meanwhile is found by
``__init_subclass__``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from typing import Any

from torch.autograd import Function

from .watch import watching

ARGUMENTS = frozenset({"offset", "offset_mask", "sampling_locations", "sampling_loc", "sampling_loc_attn"})
"""What samplers call the places where they sample."""
FORWARD, DEFINED = "forward", "__init_subclass__"
_replaced: dict[type[Function], Any] = {}
"""The classes' own ``forward``, as it stood in the class."""
_loaded: list[int] = []
_samplers: list[type[Function]] = []


def replace(first: bool) -> None:
    """A block begins, the ``first`` of all threads or a further one: replace ``forward`` of the samplers' Functions."""
    if first:
        setattr(Function, DEFINED, classmethod(_defined))
    now = [id(function) for function in Function.__subclasses__()]
    if now != _loaded:  # looking at all takes a while
        _loaded[:] = now
        _samplers[:] = [one for one in _all(Function) if _samples(one)]
    for function in _samplers:
        _replace(function)


def put_back() -> None:
    """The last block has ended."""
    delattr(Function, DEFINED)
    while _replaced:
        function, own = _replaced.popitem()
        setattr(function, FORWARD, own)


def _defined(function: type[Function], **arguments: Any) -> None:
    super(Function, function).__init_subclass__(**arguments)
    if _samples(function):
        _replace(function)


def _replace(function: type[Function]) -> None:
    if function in _replaced:
        return
    own, forward = function.__dict__[FORWARD], function.forward
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        run = functools.partial(forward, *args, **kwargs)
        watch = watching()
        if watch is None:
            return run()
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:  # the call will fail, and should with its own words
            return run()
        given.apply_defaults()
        return watch.function_call(function.__name__, given.arguments, run)

    _replaced[function] = own
    setattr(function, FORWARD, staticmethod(watched))


def _samples(function: type[Function]) -> bool:
    if FORWARD not in function.__dict__:
        return False
    try:
        return bool(set(inspect.signature(function.forward).parameters) & ARGUMENTS)
    except (TypeError, ValueError):
        return False


def _all(function: type[Function]) -> Iterator[type[Function]]:
    for one in function.__subclasses__():
        yield one
        yield from _all(one)

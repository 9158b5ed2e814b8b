"""See the autograd Functions in which compiled samplers run, whichever package they came from.

No mode sees ``torch.autograd.Function.apply``, and none sees a compiled kernel within. So while a block runs,
``forward`` of every loaded Function that has an argument named like a sampler's is replaced by one that tells who
watches in this thread; an ``apply`` that somebody has kept is seen alike, since it looks its ``forward`` up. Of a
Function that is made while a block runs, as its module is imported, ``__init_subclass__`` tells. After the last block
all is put back.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.autograd import Function

from .operator_watch import in_backward, within_watched

ARGUMENTS = frozenset({"offset", "offset_mask", "sampling_locations", "sampling_loc", "sampling_loc_attn"})
"""What samplers call the places where they sample."""
FORWARD, MADE = "forward", "__init_subclass__"
Run = Callable[[], Any]


Watcher = Callable[[str, Mapping[str, Any], Run], Any]
"""Who is told of calls of such Functions in its thread, but of none in a backward pass: of the name and the arguments,
by name; it runs the call and hands on what that gives."""


class _Local(threading.local):
    watchers: tuple[Watcher, ...] = ()


_local = _Local()
_lock = threading.RLock()
_replaced: dict[type[Function], Any] = {}
"""The classes' own ``forward``, as it stood in the class."""
_blocks: list[Watcher] = []
"""Of all threads."""
_loaded: list[int] = []
"""The Functions there were when last looked for."""
_samplers: list[type[Function]] = []


@contextmanager
def watching_functions(watcher: Watcher) -> Iterator[None]:
    """Tell ``watcher`` of this thread's calls of samplers' Functions that are loaded, while the block runs."""
    _replace(watcher)
    before = _local.watchers
    _local.watchers = (*before, watcher)
    try:
        yield
    finally:
        _local.watchers = before
        _put_back(watcher)


def _replace(watcher: Watcher) -> None:
    with _lock:
        if not _blocks:
            setattr(Function, MADE, classmethod(_made))
        _blocks.append(watcher)
        for function in _sampler_functions():
            _watch(function)


def _watch(function: type[Function]) -> None:
    if function not in _replaced:
        own = function.__dict__[FORWARD]
        _replaced[function] = own
        setattr(function, FORWARD, staticmethod(_watched(function, function.forward)))


def _made(function: type[Function], **arguments: Any) -> None:
    """A subclass is made while a block runs."""
    super(Function, function).__init_subclass__(**arguments)
    with _lock:
        if _blocks and _samples(function):
            _watch(function)


def _put_back(watcher: Watcher) -> None:
    with _lock:
        _blocks.remove(watcher)
        if not _blocks:
            delattr(Function, MADE)
        while _replaced and not _blocks:
            function, own = _replaced.popitem()
            setattr(function, FORWARD, own)


def _sampler_functions() -> list[type[Function]]:
    """All loaded Functions with an argument of a sampler's; looked for anew when there are others than before."""
    now = [id(function) for function in Function.__subclasses__()]
    if now != _loaded:
        _loaded[:] = now
        _samplers[:] = [one for one in _all(Function) if _samples(one)]
    return _samplers


def _samples(function: type[Function]) -> bool:
    return FORWARD in function.__dict__ and bool(_arguments(function) & ARGUMENTS)


def _all(function: type[Function]) -> Iterator[type[Function]]:
    for one in function.__subclasses__():
        yield one
        yield from _all(one)


def _arguments(function: type[Function]) -> set[str]:
    try:
        return set(inspect.signature(function.forward).parameters)
    except (TypeError, ValueError):
        return set()


def _watched(function: type[Function], forward: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def told(*args: Any, **kwargs: Any) -> Any:
        run: Run = functools.partial(forward, *args, **kwargs)
        if _local.watchers and not within_watched() and not in_backward():
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError:  # the call will fail, and should with its own words
                return run()
            given.apply_defaults()
            for watcher in _local.watchers:
                run = functools.partial(watcher, function.__name__, given.arguments, run)
        return run()

    return told

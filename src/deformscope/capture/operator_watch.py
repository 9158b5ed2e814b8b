"""See chosen operators of this thread, whoever calls them, at no cost for all the others.

The chosen operators have a Python kernel under a dispatch key that nothing else uses, and which is active in this
thread while somebody watches. So calls by module, by function, through a reference kept at import or from TorchScript
are seen alike, above autograd, and an operator that nobody chose never enters Python (a dispatch mode takes all of them
there, which costs a fifth to a third of a small detector's forward pass).

The key and what switches it are private to PyTorch. A PyTorch that has them no longer is watched by such a mode.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

KEY = "TESTING_ONLY_GenericMode"
"""PyTorch's key for modes: above autograd and autocast, without a kernel of its own for any operator."""
try:
    _KEY: Any = torch._C._dispatch_key_parse(KEY)
    _include, _exclude, _included, _excluded = (
        getattr(torch._C, f"_dispatch_tls_{verb}_dispatch_key_{state}")
        for verb in ("set", "is")
        for state in ("included", "excluded")
    )
    _library = torch._C._dispatch_library
except (AttributeError, RuntimeError):
    _KEY = None


@runtime_checkable
class Watcher(Protocol):
    """Who is told of every call of a chosen operator in its thread, but of none in a backward pass."""

    intercepted: Collection[str]
    """Names of the operators before which :meth:`before` is called."""

    def before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The operator ``name`` is called; it gets the arguments that this returns."""
        ...

    def after(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """It was called, with these arguments (as the caller gave them), and put this out."""
        ...


class _Local(threading.local):
    watchers: tuple[Watcher, ...] = ()
    away = False
    """Nobody is told of what runs; known by the key, where there is one."""


_local = _Local()
_lock = threading.Lock()
_libraries: dict[str, Any] = {}
"""By namespace; kernels live as long as these."""
_chosen: set[str] = set()


@contextmanager
def watching(watcher: Watcher, names: Iterable[str]) -> Iterator[None]:
    """Tell ``watcher`` of this thread's calls of the operators ``names`` (``"aten::flip"``) while the block runs.

    An operator need not be there yet: it is seen from the moment that its library is loaded.
    """
    if _KEY is None:
        with _Mode(watcher, names):
            yield
        return
    _choose(names)
    before = _local.watchers
    _local.watchers = (*before, watcher)
    _include(_KEY, True)
    try:
        yield
    finally:
        _local.watchers = before
        _include(_KEY, bool(before))


@contextmanager
def unwatched() -> Iterator[None]:
    """Tell nobody of what runs in the block."""
    if _KEY is None:
        away, _local.away = _local.away, True
        try:
            yield
        finally:
            _local.away = away
        return
    before = _included(_KEY)
    _include(_KEY, False)
    try:
        yield
    finally:
        _include(_KEY, before)


def within_watched() -> bool:
    """Whether the operator at hand is a part of one that is watched as a whole."""
    return _local.away if _KEY is None else not _included(_KEY)


def seen_from_mode(operator: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call an operator out of a dispatch mode, where PyTorch hides the key, so that what it is made of is watched."""
    if _KEY is None:
        return operator(*args, **kwargs)
    before = _excluded(_KEY)
    _exclude(_KEY, False)
    try:
        return operator(*args, **kwargs)
    finally:
        _exclude(_KEY, before)


_graph_task: Callable[[], int] = getattr(torch._C, "_current_graph_task_id", lambda: -1)


def in_backward() -> bool:
    """Whether autograd runs a backward pass: an operator of a forward pass is then a recomputation of it."""
    return _graph_task() != -1


def _choose(names: Iterable[str]) -> None:
    with _lock:
        if "_" not in _libraries:
            _libraries["_"] = _library("IMPL", "_", KEY, __file__, 0)
            _libraries["_"].fallback_fallthrough()  # no way into Python for what was not chosen
        for name in names:
            if name not in _chosen:
                _chosen.add(name)
                _register(name)


def _register(name: str) -> None:
    namespace, operator = name.split("::")
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL", KEY)
    packet = getattr(getattr(torch.ops, namespace), operator, None)
    # What is not there yet has no list of overloads; operators of libraries have the default one.
    overloads = ["default"] if packet is None else [o for o in packet.overloads() if "out" not in o]
    for overload in overloads:
        full = operator if overload == "default" else f"{operator}.{overload}"
        _libraries[namespace].impl(full, _kernel(name, overload))


def _kernel(name: str, overload: str) -> Callable[..., Any]:
    namespace, operator = name.split("::")
    found: list[Callable[..., Any]] = []

    # Called a hundred times in a small network's pass, which takes 50 ms: nothing here is written for beauty.
    def kernel(*args: Any, **kwargs: Any) -> Any:
        if not found:
            found.append(getattr(getattr(getattr(torch.ops, namespace), operator), overload)._op)
        watchers, given = _local.watchers, args
        if watchers and in_backward():
            watchers = ()
        for watcher in watchers:
            if name in watcher.intercepted:
                given = watcher.before(name, given, kwargs)
        _include(_KEY, False)
        try:
            out = found[0](*given, **kwargs)
        finally:
            _include(_KEY, True)
        for watcher in watchers:
            watcher.after(name, args, kwargs, out)
        return out

    return kernel


class _Mode(TorchDispatchMode):
    """Tells a watcher of chosen operators where there is no key for it, below autograd and in the pieces there."""

    def __init__(self, watcher: Watcher, names: Iterable[str]) -> None:
        super().__init__()
        self._watcher, self._chosen = watcher, frozenset(names)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while it is on, and the way around the compiler costs a third of this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name
        if name not in self._chosen or _local.away or in_backward():
            return func(*args, **kwargs)
        watcher, given = self._watcher, args
        if name in watcher.intercepted:
            given = watcher.before(name, given, kwargs)
        out = func(*given, **kwargs)
        watcher.after(name, args, kwargs, out)
        return out

"""One watcher for each thread: sees operators and modules while any block of ``capture`` is open there.

Operators come from a dispatch mode, module calls from ``nn.Module.__call__``, calls of autograd Functions, which no
mode sees, from their ``forward`` (:mod:`.functions`). The watcher hands all of them to the recorders of the open
blocks. When the last of them ends, whichever it is, everything is put back. Nothing is installed on a model, so that it
can be copied and saved inside a block.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    _pop_mode,
    _push_mode,
)
from torch.utils.module_tracker import ModuleTracker

from ..axes.rules import has_rule
from ..axes.trails import Kind
from ..ops import observe
from ..ops.observe import DeformCall
from .attention import GRID_SAMPLERS
from .convolutions import DEFORM_CONV, OPERATORS, finite_offsets
from .events import Event

if TYPE_CHECKING:
    from .recorder import Recorder

SAMPLER_NAMES = re.compile(r"deform|dcn|msda", re.IGNORECASE)
_tracker = ModuleTracker()


def kind_of(operator: Any) -> Kind:
    """Of an operator (``torch.ops.aten.add.Tensor``)."""
    name = operator.name().partition(".")[0]
    name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    own = name.partition("::")[2]
    public = not own.startswith("_") and "backward" not in own
    sampler = name in GRID_SAMPLERS or name in OPERATORS or (public and SAMPLER_NAMES.search(own) is not None)
    return Kind(operator, name, torch.Tag.pointwise in operator.tags, sampler)


def in_backward() -> bool:
    """Whether autograd runs a backward pass: an operator of a forward pass is then a recomputation of it."""
    return _tracker.is_bw


class Watch(TorchDispatchMode):
    """The watcher of a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.recorders: tuple[Recorder, ...] = ()
        """Of the blocks that are open in the thread."""
        self.running: list[Event] = []
        """The module calls that have begun and not ended, outermost first."""
        self._places = False
        """Any of them wants to know where cells lie."""
        self._away = 0
        self._kinds: dict[int, Kind] = {}
        self._whole: set[int] = set()
        """Operators that are not made of others."""

    @property
    def looks(self) -> bool:
        """Whether what happens in this thread is to be seen."""
        return bool(self.recorders) and not self._away and not in_backward()

    def open(self, recorder: Recorder) -> None:
        """A block begins."""
        self.recorders = (*self.recorders, recorder)
        self._places |= recorder.trails is not None
        observe.local.observer = self._own_operator
        if self not in _get_current_dispatch_mode_stack():
            _push_mode(self)

    def close(self, recorder: Recorder) -> None:
        """A block ends, in this thread or, where its generator was abandoned, in another."""
        self.recorders = tuple(one for one in self.recorders if one is not recorder)
        self._places = any(one.trails is not None for one in self.recorders)
        if self.recorders or _local.watch is not self:
            return
        self.running.clear()
        observe.local.observer = None
        modes = [mode for mode in _get_current_dispatch_mode_stack() if not getattr(mode, "is_infra_mode", bool)()]
        if self in modes:  # modes that were entered since lie above it, and stay
            above = [_pop_mode() for _ in modes[modes.index(self) :]]
            for mode in reversed(above):
                if mode is not self:
                    _push_mode(mode)

    @contextmanager
    def away(self) -> Iterator[None]:
        """See nothing of what runs in the block."""
        self._away += 1
        modes = _get_current_dispatch_mode_stack()
        uppermost = bool(modes) and modes[-1] is self  # then operators need not come by
        if uppermost:
            _pop_mode()
        try:
            yield
        finally:
            self._away -= 1
            if uppermost:
                _push_mode(self)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while it is on, and the way around the compiler costs a third of this

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = self._kinds.get(id(func))  # operators' own hashes are slow; a kind keeps its operator, and so its id
        if kind is None:
            kind = self._kinds[id(func)] = kind_of(func)
        if self._away or not (self._places or (kind.sampler and self.recorders)) or in_backward():
            return func(*args, **kwargs)
        # In inference mode operators come whole that are made of others: of those without a rule, the parts are seen.
        if self._places and id(func) not in self._whole:
            if not has_rule(kind.name, kind.pointwise):
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            self._whole.add(id(func))
        given = args
        if kind.name == DEFORM_CONV and any(recorder.broken for recorder in self.recorders):
            given = finite_offsets(args)
        for recorder in self.recorders:
            recorder.before(kind.name, args)
        out = func(*given, **kwargs)
        for recorder in self.recorders:
            recorder.operator(kind, args, kwargs, out)
        return out

    def module_call(self, forward: Callable[..., Any], call: Event) -> Any:
        """Run a module's call and let the recorders see it."""
        for recorder in self.recorders:
            recorder.enter(call)
        self.running.append(call)
        output: Any = None
        raised = True
        try:
            output = forward(call.module, *call.args, **call.kwargs)
            raised = False
        finally:
            while self.running and self.running.pop() is not call:
                pass
            if not raised:
                for recorder in self.recorders:
                    recorder.leave(call, output)
        return output

    def function_call(self, name: str, given: dict[str, Any], run: Callable[[], Any]) -> Any:
        """Run an autograd Function that may be a sampler's; what it is made of is seen first."""
        before = [len(recorder.fields) for recorder in self.recorders]
        out = run()
        for recorder, count in zip(self.recorders, before, strict=False):
            if len(recorder.fields) == count:
                recorder.function(name, given, out)
        return out

    def _own_operator(self, compute: Callable[[], Tensor], describe: Callable[[Tensor], DeformCall]) -> Tensor:
        """Run deformscope's operator, which the dispatcher sees only in parts."""
        if not self.looks:
            return compute()
        with self.away():
            out = compute()
        for recorder in self.recorders:
            recorder.convolution(describe(out))
        return out


class _Local(threading.local):
    watch: Watch | None = None


_local = _Local()
_lock = threading.RLock()
_blocks: list[Recorder] = []
"""Of all threads."""
_call: list[Any] = []
"""``nn.Module.__call__`` as it was."""


def watching() -> Watch | None:
    """This thread's watcher, if it looks at what happens."""
    watch = _local.watch
    return watch if watch is not None and watch.looks else None


def begin(recorder: Recorder) -> Watch:
    """A block of this thread begins; gives the watcher with which :func:`end` is called."""
    from . import functions

    watch = _local.watch = _local.watch or Watch()
    with _lock:
        if not _blocks:
            _call[:] = [nn.Module.__call__]
            nn.Module.__call__ = _watched_call  # type: ignore[method-assign]
        functions.replace(first=not _blocks)
        _blocks.append(recorder)
    watch.open(recorder)
    return watch


def end(watch: Watch, recorder: Recorder) -> None:
    """It ends."""
    from . import functions

    watch.close(recorder)
    with _lock:
        _blocks.remove(recorder)
        if not _blocks:
            nn.Module.__call__ = _call[0]  # type: ignore[method-assign]
            functions.put_back()


def _watched_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    watch = watching()
    if watch is None:
        return _call[0](module, *args, **kwargs)
    return watch.module_call(_call[0], Event(args, kwargs, module))

"""What is seen while a block of :func:`deformscope.capture` runs: passes of the model, and the calls of its samplers.

The first pass of a kind is traced: the receptive fields' centres are followed through the network's operators, so that
every cell's place in the image is known and not guessed, and so is where the offsets came from. Later passes of the
same kind are recognized by their steps (:mod:`.known_passes`) and cost next to nothing.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from itertools import islice
from typing import Any

from torch import Tensor, nn

from ..errors import DeformscopeWarning
from ..fields.attention import AttentionField
from ..fields.field import CellGrid, OffsetSource, Placement
from ..fields.fields import Fields
from ..ops.intercept import intercepted
from ..ops.observe import DeformCall
from ..ops.pointwise import dilation_decides
from .attention import GRID_SAMPLERS, AttentionReader, aligned_corners, placed_in
from .attention_call import NotUnderstood
from .function_watch import Run
from .grid_rules import RULES, moves
from .kernels import kernel_call
from .known_passes import Pass, Signature, Steps, TracedCall, known_passes, signature
from .operator_watch import in_backward, unwatched
from .running_modules import RunningModules, raised
from .sampler_modules import ModuleReader
from .samplers import (
    DEFORM_CONV,
    READERS,
    arguments,
    field_of,
    finite_offsets,
    named_arguments,
    other_operators,
)
from .tensor_trace import EveryOperator, TensorTrace, Trail, share_non_finite, tensors_in

CONVOLUTIONS = "aten::conv2d", "aten::convolution"
REPAIRS = "aten::nan_to_num", "aten::nan_to_num_"
"""Operators with which a model replaces NaN and infinity."""
placements_now: ContextVar[tuple[Placement, ...]] = ContextVar("placements", default=())
"""How the photos of the batch lie in the network's input, where somebody has said so."""


class Recorder:
    """Sees chosen operators (as a watcher) and, while it traces, all operators and all modules."""

    intercepted: Collection[str] = (*READERS, *REPAIRS)

    def __init__(self, model: nn.Module, broken: bool) -> None:
        self.fields = Fields()
        self._model, self._broken = model, broken
        named = list(model.named_modules())
        names = {id(module): name or type(model).__name__ for name, module in named}
        self._owners = {id(p): names[id(m)] for _, m in named for p in m._parameters.values() if p is not None}
        self._tensors = tuple((p.device.type, p.dtype) for p in islice(model.parameters(), 1))
        self._known = known_passes(model, [module for _, module in named])
        self._trace = TensorTrace()
        self._mode = EveryOperator(self._trace)
        self._begin_hook: Any = None
        self._end_hook: Any = None
        self._passes = [Pass(None, 0, Steps(None, self._owners))]
        self._thread = threading.get_ident()
        self._replaced = 0.0
        sees = self.missed, lambda: self.here, self.looking_away
        self._running = RunningModules(names, self._trace, lambda: self.here, self.broke_off)
        self._attention = AttentionReader(named, self._record_attention, *sees)
        self._modules = ModuleReader(named, self.whole_call, *sees)
        self._others = other_operators(look=not self._known.signatures)
        self.ran = False
        """Any part of the model has run."""
        self.taken_apart = False
        """Another dispatch mode has taken resizes apart."""
        self.samplers = 0
        """Calls of ``grid_sample`` in no module that is known to learn where it samples."""
        self.unread: dict[str, str] = {}
        """Samplers that were seen and not understood, by name, and why."""

    @property
    def here(self) -> bool:
        """Whether what happens is the recorder's business: in its thread, and nothing that a backward pass repeats."""
        return threading.get_ident() == self._thread and not in_backward()

    @property
    def watched(self) -> Collection[str]:
        """The operators that have to be seen in every pass."""
        return {*RULES, *READERS, *REPAIRS, *GRID_SAMPLERS, *self._others}

    def open(self) -> None:
        """The block begins."""
        self._attention.open()
        self._modules.open()
        # With keywords, of which global hooks are told nothing. nn.Module's own method: scripted modules refuse it, and
        # yet call the hook.
        self._begin_hook = nn.Module.register_forward_pre_hook(self._model, self._begin_of_model, with_kwargs=True)
        self.trace_on(True)

    def trace_on(self, on: bool) -> None:
        """Trace from now on, or no longer: see all operators, and all modules."""
        self._mode.switch(on)
        self._running.watch(on)

    def close(self) -> None:
        """The block has ended."""
        self.trace_on(False)
        self._attention.close()
        self._modules.close()
        for hook in (self._begin_hook, self._end_hook):
            if hook is not None:
                hook.remove()
        # These know this recorder, and would keep it, and the model, until the next collection.
        self.ran = self._running.ran
        del self._attention, self._modules, self._running

    def missed(self, name: str, why: str) -> None:
        """A sampler of this name was called that nobody here can read."""
        self.unread.setdefault(name, why)

    def begin(self, signature: Signature | None) -> None:
        """A forward pass begins: what comes now meets the network's input."""
        self._attention.begin()
        if signature is not None:
            # On these depends how the detectors' 1×1 convolutions are called (ops.pointwise).
            place = dilation_decides(), *self._tensors
            signature = (*signature, intercepted(), place, self._passes[-1].signature)
        known = signature in self._known.signatures
        self._passes.append(Pass(signature, len(self.fields), Steps(signature, self._owners), recognized=known))
        self.trace_on(not known)
        self._trace.input, self._trace.taken_apart = None, False

    def broke_off(self) -> None:
        """The pass at hand will not come to its end."""
        self._passes[-1].steady = False

    def end(self, outputs: Any = ()) -> None:
        """It has ended and gives back ``outputs``."""
        ended = self._passes.pop()
        ended.steady &= not self._trace.taken_apart
        self.taken_apart |= self._trace.taken_apart
        steps, returned = ended.steps.number, list(tensors_in(outputs))
        if ended.recognized:
            self._trace.input, trails = self._known.ends.get(steps, (None, ()))
            for tensor, trail in zip(returned, trails, strict=False):
                self._trace.note(tensor, trail.counted_from(-ended.first))
        elif ended.signature is not None and (ended.calls or ended.attended) and ended.steady:
            trails = tuple(self._trace.trail(tensor).counted_from(ended.first) for tensor in returned)
            self._known.learn(ended.signature, ended.calls, steps, (self._trace.input, trails))
        around = self._passes[-1]
        around.steps.join(steps)
        self.trace_on(not around.recognized)

    def before(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """A sampler, or an operator that replaces NaN, is called."""
        if name in REPAIRS and self._mode.on:
            self._replaced = share_non_finite(args[0])
        return finite_offsets(name, args) if self._broken and name in READERS else args

    def after(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """These, or an operator that moves grids, have run."""
        if self._mode.on:
            self._trace.see(name, args, kwargs, out)
            if name in REPAIRS:
                self._trace.replaced(out, self._replaced)
        if moves(name, args):
            self._passes[-1].steps.move(name, args, kwargs, out if isinstance(out, Tensor) else out[0])
        if name in GRID_SAMPLERS:
            aligned = aligned_corners(name, args, kwargs)
            grid = args[1] if len(args) > 1 else kwargs["grid"]
            within = self._attention.sampled(args[0], grid, aligned) or self._modules.sampled(aligned)
            self.samplers += not within
        elif self._attention.wanted and name in CONVOLUTIONS:
            self._attention.convolved(args[0])
        elif name in READERS:
            self._read(name, lambda: READERS[name](args, kwargs, out), self._record)
        elif name in self._others and not self._attention.kernel_call(named_arguments(name, args, kwargs)):
            self.missed(name, "an operator that is not known")

    def run_function(self, name: str, given: Mapping[str, Any], run: Run) -> Any:
        """An autograd Function that may be a sampler's is called."""
        before = len(self.fields)
        out = run()
        # What it is made of has been seen, or it samples for the attention module around it.
        if self.here and len(self.fields) == before and not self._attention.kernel_call(given):
            self._read(name, lambda: kernel_call(given, out), self.whole_call)
        return out

    def _read(self, name: str, read: Callable[[], DeformCall | None], keep: Callable[[DeformCall], None]) -> None:
        """Keep the call of a sampler of this name; if it is not understood, the model goes on."""
        try:
            with self.looking_away():
                call = read()
        except NotUnderstood as why:
            self.missed(name, str(why))
        else:
            if call is not None:
                keep(call)

    @contextmanager
    def looking_away(self) -> Iterator[None]:
        """What runs in the block is a part of an operator that is reported as a whole."""
        if not self.here:
            yield
            return
        on = self._mode.on
        self._mode.switch(False)
        try:
            with unwatched():
                yield
        finally:
            self._mode.switch(on)

    def own_call(self, call: DeformCall) -> None:
        """A call of deformscope's operator, which the dispatcher saw only in pieces."""
        if self.here:
            self._passes[-1].steps.move(DEFORM_CONV, arguments(call), {}, call.output)
            self._record(call)

    def whole_call(self, call: DeformCall, name: str = "") -> None:
        """A call of a deformable convolution that no operator is, of the module of this ``name``; empty: of the one
        that runs."""
        self._passes[-1].steps.call(DEFORM_CONV, call.places_output, arguments(call), call.offset)
        self._record(call, name)

    def _begin_of_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model is called; it has entered already, as far as modules are watched."""
        if not self.here or not self._running.watched or self._running.stack != [module]:
            return
        given = (*args, kwargs) if kwargs else args
        # What is made of an earlier call's output has its place in that one's input: then its pass goes on.
        if not self._trace.moved(given):
            self.begin(signature(given))
            self._end_hook = nn.Module.register_forward_hook(module, self._end_of_model, always_call=True)

    def _end_of_model(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.here:
            if raised(output):
                self.broke_off()
            self._end_hook.remove()
            self._end_hook = None
            self._running.stack.clear()
            self.end(output)

    def _record(self, call: DeformCall, name: str = "") -> None:
        self._modules.recorded()
        now, place = self._passes[-1], self._passes[-1].steps.number
        known = self._known.calls.get(place) if now.recognized else self._traced(call, name)
        if known is None:
            self._unknown(call)
            return
        now.calls[place] = known
        below = "" if known.below is None else list(self.fields)[now.first + known.below]
        placements = placements_now.get() or known.placements
        field = field_of(call, placements, name=known.name, cells=known.cells, below=below, source=known.source)
        self.fields.add(field)

    def _record_attention(self, field: AttentionField) -> None:
        self._passes[-1].attended = True
        self._passes[-1].steady &= not self._running.placements  # which a trace alone sees
        placements = placed_in(field, placements_now.get() or self._running.placements)
        self.fields.add_attention(replace(field, placements=placements))

    def _traced(self, call: DeformCall, name: str) -> TracedCall:
        now, trace = self._passes[-1], self._trace
        if call.channels_last is not None:
            trace.note(call.input, trace.trail(call.channels_last)._replace(grid=None))
        name = name or self._running.name("deform_conv2d")
        made = call.offset if call.made is None else call.made
        offset, cells = trace.trail(made), trace.grid(call.input)
        placed = offset.grid is not None and made.shape[-2:] == call.offset.shape[-2:]
        apart = trace.misalignment(call, made) if placed else (0.0, 0.0)
        source = OffsetSource(tuple(sorted(offset.convolutions)), apart, offset.replaced or 0.0)
        below = trace.trail(call.input).counted_from(now.first).call
        # How much was replaced is seen by a trace alone; so is what came from an earlier pass.
        now.steady &= offset.replaced is None and (below is None or below >= 0)
        grid: CellGrid | None = None
        if not call.places_output:
            grid = cells if call.output.shape[-2:] == call.input.shape[-2:] else None
        elif call.output.shape[-2:] == call.offset.shape[-2:]:  # and channels do not come last
            grid = cells.strided(call.kernel_size, call.stride, call.padding, call.dilation)
        trace.note(call.output, Trail(grid, len(self.fields)))
        return TracedCall(name, cells, below, source, self._running.placements)

    def _unknown(self, call: DeformCall) -> None:
        """Record a call to which no traced pass came on this way."""
        now, name = self._passes[-1], self._owners.get(id(call.weight), "deform_conv2d")
        cells, certain = now.steps.cells((call.input.shape[-2], call.input.shape[-1]))
        self.fields.add(field_of(call, placements_now.get(), name=name, cells=cells))
        if not now.missed:
            now.missed = True
            self._known.miss(now.signature or ())
            doubt = "" if certain else ", and the places of its cells are rough"
            warnings.warn(
                f"{name}: the model went another way than in the pass that was traced on inputs of this shape; in this "
                f"one the layers below and the convolutions that made the offsets are not known{doubt}. The next one "
                "is traced: capture again",
                DeformscopeWarning,
                stacklevel=2,
            )

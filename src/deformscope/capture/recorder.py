"""Capture the offsets of every deformable convolution of any PyTorch model, without touching its code.

Calls are seen at the operator (``torchvision::deform_conv2d``, below autograd) and at deformscope's own, whichever
module makes them. On the way the receptive fields' centres are followed through the network's convolutions, poolings
and resizes, so that every cell's place in the image is known and not guessed.
"""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import NoDeformableCall
from ..fields.field import OffsetField, Placement
from ..ops.observe import DeformCall, observing
from .grid_trace import GridTrace

_placements: ContextVar[tuple[Placement, ...]] = ContextVar("placements", default=())


@contextmanager
def placed(placements: Sequence[Placement]) -> Iterator[None]:
    """Tell :func:`capture` how the photos of the batch lie in the network's input, while the block runs."""
    token = _placements.set(tuple(placements))
    try:
        yield
    finally:
        _placements.reset(token)


class Fields(Mapping[str, OffsetField]):
    """The captured fields by module name, in the order of the calls; a module's second call is ``name#2``."""

    def __init__(self, fields: Mapping[str, OffsetField] | None = None) -> None:
        self._fields: dict[str, OffsetField] = dict(fields or {})

    def __getitem__(self, name: str) -> OffsetField:
        try:
            return self._fields[name]
        except KeyError:
            raise NoDeformableCall(
                f"no deformable call named {name!r}; captured: {', '.join(map(repr, self._fields)) or 'none'}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return "\n".join(["Fields:", *(f"  {field!r}" for field in self.values())])

    def matching(self, patterns: Sequence[str]) -> Fields:
        """The fields whose names match any of the shell patterns (``*layer3*``), or hold one as a dotted part."""
        chosen: dict[str, OffsetField] = {}
        for pattern in patterns:
            found = {n: f for n, f in self.items() if fnmatch.fnmatchcase(n, pattern) or f".{pattern}." in f".{n}."}
            if not found:
                self[pattern]  # raises, naming what there is
            chosen |= found
        return Fields({name: field for name, field in self.items() if name in chosen}) if patterns else self

    def select(self, image: int) -> Fields:
        """The fields of one image of the batch."""
        return Fields({name: field.select(image) for name, field in self.items()})

    def add(self, name: str, field: OffsetField) -> None:
        """Keep ``field`` under ``name``, or ``name#2`` and so on where that is taken."""
        calls, unique = 1, name
        while unique in self._fields:
            calls += 1
            unique = f"{name}#{calls}"
        self._fields[unique] = replace(field, name=unique)


@contextmanager
def capture(model: nn.Module) -> Iterator[Fields]:
    """Record every deformable convolution that runs inside the block.

        with capture(model) as fields:
            model(images)

    Works with torchvision's operator, functional or by module, and deformscope's own, under grad, no_grad and
    inference_mode, for any float type (offsets are kept as float32 or float64), on any device. Neither the model's
    mode, its hooks nor any seed is touched. The fields carry the photos' placements where the model is a deformscope
    detector or resizes with torchvision's ``GeneralizedRCNNTransform``.

    Raises NoDeformableCall at the end of a block in which no deformable convolution ran.
    """
    recorder = _Recorder(model)
    hooks = (
        nn.modules.module.register_module_forward_pre_hook(recorder.enter),
        nn.modules.module.register_module_forward_hook(recorder.leave, always_call=True),
    )
    try:
        with observing(recorder.own_call), recorder:
            yield recorder.fields
    finally:
        for hook in hooks:
            hook.remove()
    if not recorder.fields:
        raise NoDeformableCall(_nothing_seen(model))


class _Recorder(TorchDispatchMode):
    """Sees operators (as a dispatch mode) and the modules that make them (through global hooks)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.fields = Fields()
        self._names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._thread = threading.get_ident()
        self._trace = GridTrace()
        self._placements: tuple[Placement, ...] = ()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name
        if name == "torchvision::deform_conv2d":
            tensor, weight, offset, mask, _, *geometry, _, _, modulated = args
            pairs = [(geometry[i], geometry[i + 1]) for i in (0, 2, 4)]
            kernel = (weight.shape[-2], weight.shape[-1])
            self._record(DeformCall(tensor, offset, mask if modulated else None, out, kernel, *pairs))
        self._trace.see(name, args, kwargs, out)
        if name == "torchvision::deform_conv2d":
            self._trace.called(out, len(self.fields) - 1)
        return out

    def own_call(self, call: DeformCall) -> None:
        """A call of deformscope's operator, which the dispatcher saw only in pieces."""
        self._record(call)
        grid = self._trace.grid(call.input)
        self._trace.note(call.output, grid.strided(call.kernel_size, call.stride, call.padding, call.dilation))
        self._trace.called(call.output, len(self.fields) - 1)

    def enter(self, module: nn.Module, args: Any) -> None:
        """A module's forward begins."""
        if threading.get_ident() == self._thread:
            self._running.append(module)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module's forward ends, also by an exception."""
        if threading.get_ident() != self._thread:
            return
        while self._running and self._running.pop() is not module:
            pass
        if type(module).__name__ == "GeneralizedRCNNTransform" and output is not None:
            sizes = [(image.shape[-2], image.shape[-1]) for image in args[0]]
            self._placements = tuple(
                Placement(size, (resized[0] / size[0], resized[1] / size[1]))
                for size, resized in zip(sizes, output[0].image_sizes, strict=True)
            )

    def _record(self, call: DeformCall) -> None:
        name = next((self._names[id(m)] for m in reversed(self._running) if id(m) in self._names), "deform_conv2d")
        placements = _placements.get() or self._placements
        images = call.offset.shape[0]
        # Copies, since the model may go on to change its tensors in place; made outside of inference mode, so that
        # the user can calculate with them freely.
        with torch.inference_mode(False), torch.no_grad():
            field = OffsetField.from_tensor(
                call.offset.detach().clone(),
                kernel_size=call.kernel_size,
                stride=call.stride,
                padding=call.padding,
                dilation=call.dilation,
                offset_groups=call.offset.shape[1] // (2 * call.kernel_size[0] * call.kernel_size[1]),
                modulation=None if call.mask is None else call.mask.detach().clone(),
                input_size=(call.input.shape[-2], call.input.shape[-1]),
                # A call inside a region-of-interest head has its own count of maps, which are no photos.
                placements=placements if len(placements) == images else (),
            )
        number = self._trace.call(call.input)
        below = "" if number is None else list(self.fields)[number]
        self.fields.add(name, replace(field, cells=self._trace.grid(call.input), below=below))


def _nothing_seen(model: nn.Module) -> str:
    compiled = [type(m).__name__ for m in model.modules() if type(m).__name__ == "OptimizedModule"]
    if compiled:
        return (
            f"{type(model).__name__}: no deformable convolution was seen; inside a torch.compile'd region nothing can "
            "be: capture the module that was compiled (`compiled._orig_mod`)"
        )
    return (
        f"{type(model).__name__}: no deformable convolution was called inside the block; expected at least one call of "
        "torchvision.ops.deform_conv2d or deformscope.ops.deform_conv2d. Did the model run inside it? Offsets of other "
        "operators go in through OffsetField.from_tensor"
    )

"""Read multi-scale deformable attention: one recipe for all its classes (Zhu et al., ICLR 2021).

Every implementation (transformers, mmcv, ultralytics, rfdetr, the original) is a module that owns two layers named
``sampling_offsets`` and ``attention_weights`` and calls one ``grid_sample`` per level, or one kernel, while it runs;
every other ``grid_sample`` is none of its.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..fields.attention import AttentionField
from ..fields.field import Pair, Placement
from .attention_call import BOTH, LOCATIONS, REFERENCES, AttentionCall, NotUnderstood, attention_field

GRID_SAMPLERS = "aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler"
"""What ``grid_sample`` is to the dispatcher: the first, or of an exported model and in a dispatch mode one of the
others."""


def is_attention(module: nn.Module) -> bool:
    """Whether a module is multi-scale deformable attention, by the two layers that all its implementations have."""
    children = module._modules  # not getattr, which looks a while for what is not there, in every module
    return "sampling_offsets" in children and "attention_weights" in children


def aligned_corners(sampler: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of one of these has aligned corners; cuDNN's kernel knows no other way."""
    if sampler == "aten::cudnn_grid_sampler":
        return True
    return bool(args[4] if len(args) > 4 else kwargs["align_corners"])


class AttentionReader:
    """Sees the calls of a model's attention modules and hands each over as an :class:`AttentionField`."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Module]],
        keep: Callable[[AttentionField], None],
        miss: Callable[[str, str], None],
        here: Callable[[], bool],
        away: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """``named``: all modules of the model, by name. ``keep`` gets the fields, without placements, and ``miss`` the
        name of a module that is not understood, and why; ``here`` says whether what happens is to be seen, and while
        ``away`` nothing is."""
        self._keep, self._miss, self._here, self._away = keep, miss, here, away
        self._running: list[AttentionCall] = []
        self._input: Pair | None = None
        self._hooks: list[Any] = []
        modules = [(name, module) for name, module in named if is_attention(module)]
        self._modules = [module for _, module in modules]
        self._names = {id(module): name or type(module).__name__ for name, module in modules}

    def open(self) -> None:
        """Hook the attention modules; a model without any costs nothing."""
        for module in self._modules:
            parts = (module.get_submodule("sampling_offsets"), module.get_submodule("attention_weights"))
            self._hooks += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
                parts[0].register_forward_hook(self._offsets),
                parts[1].register_forward_hook(self._logits),
            ]
            inner = [child for child in module.children() if child not in parts and _takes_locations(child)]
            self._hooks += [child.register_forward_pre_hook(self._kernel, with_kwargs=True) for child in inner]

    @property
    def wanted(self) -> bool:
        """Whether the model has any such module."""
        return bool(self._names)

    def close(self) -> None:
        """Take every hook away."""
        while self._hooks:
            self._hooks.pop().remove()
        self._running.clear()

    def begin(self) -> None:
        """A pass begins: its first convolution gets the network's input."""
        self._input = None

    def convolved(self, image: Tensor) -> None:
        """A convolution got this: the first one's is the network's input."""
        if self._input is None and image.ndim == 4:
            self._input = (image.shape[-2], image.shape[-1])

    def sampled(self, value: Tensor, grid: Tensor, aligned: bool) -> bool:
        """``grid_sample`` was called; whether inside an attention module: others are none of its."""
        if not self._running:
            return False
        if value.ndim != 4:
            self._running[-1].volumes = True
        else:
            size = (value.shape[-2], value.shape[-1])
            self._running[-1].samplers.append((grid.detach().clone(), size, aligned))
        return True

    def kernel_call(self, given: Mapping[str, Any]) -> bool:
        """A kernel got these arguments; whether they are an attention module's."""
        if not self._running or not any(name in given for name in (*LOCATIONS, BOTH)):
            return False
        if not self._running[-1].kernel:
            kept = {key: value for key, value in given.items() if value is not None}
            self._running[-1].kernel = {
                key: value.detach().clone() if isinstance(value, Tensor) and key != "value" else value
                for key, value in kept.items()
                if key != "value"
            }
        return True

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._here():
            self._running.append(AttentionCall(module, _bound(module, args, kwargs)))

    def _kernel(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running and self._here():
            self.kernel_call(_bound(module, args, kwargs))

    def _offsets(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_part(module, "sampling_offsets") and isinstance(output, Tensor):
            self._running[-1].offsets = output.detach()

    def _logits(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._is_part(module, "attention_weights") and isinstance(output, Tensor):
            self._running[-1].logits = output.detach()

    def _is_part(self, module: nn.Module, name: str) -> bool:
        return bool(self._running) and self._running[-1].module._modules[name] is module and self._here()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._running or self._running[-1].module is not module or not self._here():
            return
        call = self._running.pop()
        if output is None:  # it has raised
            return
        name = self._names[id(module)]
        try:
            with self._away(), torch.inference_mode(False), torch.no_grad():
                found = attention_field(call, output, name, self._input)
        except NotUnderstood as why:
            self._miss(name, str(why))
        else:
            self._keep(found)


def placed_in(field: AttentionField, placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
    """The photos' placements, where there is one for each of the field's images."""
    return placements if len(placements) == field.points.shape[0] else ()


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A forward's arguments by name, those in ``**kwargs`` among them.

    Where a class only hands them on to the one it is made of, by the names that they have there.
    """
    values: dict[str, Any] = {}
    for owner in (None, *type(module).__mro__):
        forward = module.forward if owner is None else owner.__dict__.get("forward")
        if forward is None:
            continue
        try:
            found = inspect.signature(forward).bind_partial(*(args if owner is None else (module, *args)), **kwargs)
        except (TypeError, ValueError):  # the call will fail, and should with its own words
            continue
        for name, value in found.arguments.items():
            kind = found.signature.parameters[name].kind
            values |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        if any(name in values for name in (*REFERENCES, *LOCATIONS)):
            break
    return {name: value for name, value in values.items() if value is not None}


def _takes_locations(module: nn.Module) -> bool:
    return any(name in LOCATIONS for name in inspect.signature(module.forward).parameters)

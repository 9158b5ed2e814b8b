"""Which modules run while a pass is traced, from hooks on all modules.

They name deformable calls and what convolutions put out, and torchvision's transform tells how photos are placed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..fields.field import Placement
from .tensor_trace import TensorTrace


class RunningModules:
    """The modules whose forward has begun and not ended, each of the model's with its name."""

    def __init__(
        self, names: Mapping[int, str], trace: TensorTrace, here: Callable[[], bool], broke_off: Callable[[], None]
    ) -> None:
        """``names``: of the model's modules, by ``id``; ``here()`` says whether what happens is the block's;
        ``broke_off()`` is called when a module has raised."""
        self._names, self._trace, self._here, self._broke_off = names, trace, here, broke_off
        self._hooks: list[Any] = []
        self.stack: list[nn.Module] = []
        """Outermost first."""
        self.placements: tuple[Placement, ...] = ()
        """How the model's own transform has placed its photos."""
        self.ran = False
        """Any part of the model has run."""

    @property
    def watched(self) -> bool:
        """Whether modules are seen now."""
        return bool(self._hooks)

    def watch(self, on: bool) -> None:
        """See all modules from now on, or no longer."""
        if on and not self._hooks:
            module = nn.modules.module
            self._hooks = [
                module.register_module_forward_pre_hook(self._enter),
                module.register_module_forward_hook(self._leave, always_call=True),
            ]
        elif not on:
            while self._hooks:
                self._hooks.pop().remove()

    def name(self, otherwise: str) -> str:
        """Of the innermost one that is the model's."""
        return next((self._names[id(m)] for m in reversed(self.stack) if id(m) in self._names), otherwise)

    def _enter(self, module: nn.Module, args: Any) -> None:
        """A module's forward begins."""
        if self._here():
            self.stack.append(module)
            self.ran = self.ran or id(module) in self._names

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """A module's forward ends, also by an exception."""
        if not self._here():
            return
        while self.stack and self.stack.pop() is not module:
            pass
        if raised(output):
            self._broke_off()
        elif isinstance(module, nn.Conv2d):
            if id(module) in self._names and isinstance(output, Tensor):
                self._trace.name(output, self._names[id(module)])
        elif type(module).__name__ == "GeneralizedRCNNTransform":
            sizes = [(image.shape[-2], image.shape[-1]) for image in args[0]]
            self.placements = tuple(
                Placement(size, (resized[0] / size[0], resized[1] / size[1]))
                for size, resized in zip(sizes, output[0].image_sizes, strict=True)
            )


def raised(output: Any) -> bool:
    """Whether a module's forward has raised."""
    return output is None and sys.exc_info()[0] is not None

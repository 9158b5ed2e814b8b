"""What the watcher hands to readers: one call of an operator, of an autograd Function or of a module that samples."""

from __future__ import annotations

from dataclasses import dataclass, field as dataclass_field
from typing import Any

from torch import Tensor, nn

from ..fields.places import Pair


class NotUnderstood(Exception):
    """A call of a sampler that was seen, and follows none of the known conventions; says why."""


@dataclass(eq=False)
class Event:
    """One call, and of a module what was seen within it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    """Of Functions all arguments, by name."""
    module: nn.Module | None = None
    output: Any = None
    parts: dict[str, Tensor] = dataclass_field(default_factory=dict)
    """What the module's children returned, by their names; kept of modules that sample."""
    samplers: list[tuple[Tensor, tuple[int, ...], bool]] = dataclass_field(default_factory=list)
    """Of each ``grid_sample`` within: its grid, the shape of what it samples, and ``align_corners``."""
    kernel: dict[str, Any] = dataclass_field(default_factory=dict)
    """What a kernel within was given, by name."""
    recorded: bool = False
    """A convolution within has been recorded."""
    image_size: Pair | None = None
    """Height and width of the network's input, px."""

    def named(self, *names: str, **defaults: Any) -> dict[str, Any]:
        """The arguments by the names of the operator's arguments, in order."""
        return defaults | dict(zip(names, self.args, strict=False)) | self.kwargs

"""Change what a deformable convolution gets, above autograd: offsets, modulation, weight, whichever model calls it.

:mod:`.observe` and a dispatch mode see calls below autograd, where reading is all that can be done. Here tensors are
still live: gradients flow through what is put in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .deform_conv import deform_conv2d


class Inputs(NamedTuple):
    """What an operator gets, live.

    Example:
        >>> def halved(number, call):
        ...     return call._replace(offset=call.offset / 2)
        >>> with intercepting(halved):
        ...     output = model(images)
    """

    input: Tensor
    """[n c height width]"""
    offset: Tensor
    """[n 2·g·K h w], channels (dy, dx) interleaved."""
    weight: Tensor
    """[out c/groups kh kw]"""
    mask: Tensor | None
    """The modulation [n g·K h w], or None (v1)."""


Change = Callable[[int, Inputs], Inputs]
"""From a call's number (0, 1, … in the order of the calls) and what it would get to what it gets."""

TORCHVISIONS = ("input", "weight", "offset", "mask", "bias")
"""The tensors of torchvision's operator, in its order; its last argument says whether ``mask`` counts."""
OWN = {"input": 0, "offset": 1, "weight": 2, "mask": 7}
"""Places of the same in deformscope's operator."""

_now: ContextVar[bool] = ContextVar("intercepting", default=False)


def intercepted() -> bool:
    """Whether calls are being changed, so that a pass is of another kind than the model's own."""
    return _now.get()


@contextmanager
def intercepting(change: Change) -> Iterator[None]:
    """Have ``change`` called before every deformable convolution of this thread inside the block, to alter it.

    Sees torchvision's operator, functional or by module, and deformscope's; the model's code is not touched. What comes
    back has the same shapes; a modulation makes a v1 call a v2 one. Calls inside a region of ``torch.compile`` are not
    seen.

    Example:
        >>> import torch, torchvision
        >>> layer = torchvision.ops.DeformConv2d(4, 4, 3, padding=1)
        >>> with intercepting(lambda number, call: call._replace(offset=torch.zeros_like(call.offset))):
        ...     plain = layer(torch.randn(1, 4, 5, 6), torch.randn(1, 18, 5, 6))
    """
    token = _now.set(True)
    try:
        with _Interception(change):
            yield
    finally:
        _now.reset(token)


class _Interception(TorchFunctionMode):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change, self._calls = change, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # While this runs the mode is off: what deformscope's operator hands on to torchvision's is not seen again.
        if func is deform_conv2d:
            args = list(args)
            changed = self._changed(Inputs(**{name: args[place] for name, place in OWN.items()}))
            for name, place in OWN.items():
                args[place] = getattr(changed, name)
        elif str(func).startswith("torchvision.deform_conv2d"):
            values = dict(zip(TORCHVISIONS, args, strict=False)) | kwargs
            rest = list(args[len(TORCHVISIONS) :])
            modulated = values.pop("use_mask") if "use_mask" in values else rest.pop()
            mask = values["mask"]
            changed = self._changed(
                Inputs(values["input"], values["offset"], values["weight"], mask if modulated else None)
            )
            values |= changed._asdict() | {"mask": mask if changed.mask is None else changed.mask}
            args = [*(values.pop(name) for name in TORCHVISIONS), *rest]
            kwargs = values | {"use_mask": changed.mask is not None}
        return func(*args, **kwargs)

    def _changed(self, call: Inputs) -> Inputs:
        number, self._calls = self._calls, self._calls + 1
        return self._change(number, call)

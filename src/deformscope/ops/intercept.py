"""Change what a deformable convolution gets, above autograd: its offsets and its modulation, whichever model calls it.

:mod:`.observe` and a dispatch mode see calls below autograd, where reading is all that can be done. Here tensors are
still live: gradients flow through what is put in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .deform_conv import deform_conv2d

Change = Callable[[int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""From a call's number (0, 1, … in the order of the calls), offset and modulation to those that the operator gets."""

NAMES = ("input", "weight", "offset", "mask", "bias")
"""torchvision's operator's tensors, in its order; its last argument says whether ``mask`` counts."""
OWN_OFFSET, OWN_MASK = 1, 7
"""Places of the same in deformscope's operator."""


@contextmanager
def intercepting(change: Change) -> Iterator[None]:
    """Have ``change`` called before every deformable convolution of this thread inside the block, to alter it.

    Sees torchvision's operator, functional or by module, and deformscope's; the model's code is not touched. The
    offset is ``[n 2·g·K h w]``, channels (dy, dx) interleaved, the modulation ``[n g·K h w]`` or None (v1); what comes
    back has the same shapes, and a modulation makes a v1 call a v2 one. Calls inside a ``torch.compile``d region are
    not seen.

    Example:
        >>> import torch, torchvision
        >>> layer = torchvision.ops.DeformConv2d(4, 4, 3, padding=1)
        >>> with intercepting(lambda number, offset, mask: (torch.zeros_like(offset), mask)):
        ...     plain = layer(torch.randn(1, 4, 5, 6), torch.randn(1, 18, 5, 6))
    """
    with _Interception(change):
        yield


class _Interception(TorchFunctionMode):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self._change, self._calls = change, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # While this runs the mode is off: what deformscope's operator hands on to torchvision's is not seen again.
        if func is deform_conv2d:
            args = list(args)
            args[OWN_OFFSET], args[OWN_MASK] = self._altered(args[OWN_OFFSET], args[OWN_MASK])
        elif str(func).startswith("torchvision.deform_conv2d"):
            values = dict(zip(NAMES, args, strict=False)) | {k: kwargs.pop(k) for k in NAMES if k in kwargs}
            rest = list(args[len(NAMES) :])
            modulated = kwargs.pop("use_mask", None) if "use_mask" in kwargs else rest.pop()
            offset, mask = self._altered(values["offset"], values["mask"] if modulated else None)
            values |= {"offset": offset, "mask": values["mask"] if mask is None else mask}
            args = [*(values[name] for name in NAMES), *rest]
            kwargs["use_mask"] = mask is not None
        return func(*args, **kwargs)

    def _altered(self, offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        number, self._calls = self._calls, self._calls + 1
        return self._change(number, offset, mask)

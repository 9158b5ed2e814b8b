"""The operator while something follows along: a tracer, a compiler, an exporter, or TorchScript.

They keep the call for inputs of other sizes, so nothing here may depend on sizes: torchvision's operator is called as
its own function calls it, which makes deformscope's as fit for graphs as torchvision's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .autocast import without_autocast
from .geometry import pair

OUTSIDE = -1e6
"""An offset, cells, that leads out of any map; in the place of those that are NaN or infinite."""


def followed() -> bool:
    """Whether a tracer, a compiler or an exporter reads along."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    """:func:`deformscope.ops.deform_conv2d` by torchvision's operator, with torchvision's own checks of shapes."""
    from torchvision.ops import deform_conv2d

    kind = input.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast and input.dtype != torch.float64 else input.dtype
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    with without_autocast(kind):
        return deform_conv2d(
            input.to(wide),
            offset.to(wide).nan_to_num(OUTSIDE, OUTSIDE, OUTSIDE),
            weight.to(wide),
            None if bias is None else bias.to(wide),
            pair(stride, "stride", 1),
            pair(padding, "padding", 0),
            pair(dilation, "dilation", 1),
            None if mask is None else mask.to(wide),
        ).to(dtype)


def scriptable() -> Callable[..., Tensor]:
    """What TorchScript compiles in the place of :func:`deformscope.ops.deform_conv2d`: the same without ``impl``."""
    from . import scripted

    return scripted.deform_conv2d

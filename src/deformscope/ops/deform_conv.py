"""Deformable convolution v1 and v2 (Dai et al., ICCV 2017; Zhu et al., CVPR 2019), by the fastest implementation."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from ..errors import DeformscopeError
from . import embedding_bag
from .autocast import without_autocast
from .followed import deform_conv2d as followed_deform_conv2d, followed, scriptable
from .geometry import Geometry, check
from .observe import DeformCall, local

IMPLEMENTATIONS = ("auto", "torchvision", "embedding_bag")
VARIABLE = "DEFORMSCOPE_DEFORM_IMPL"
default_impl = os.environ.get(VARIABLE) or "auto"
"""What ``"auto"`` means. The environment is read once, since looking there costs a tiny map a twentieth of its time."""
FIXED_COST = {False: 40_000, True: 12_000}
"""What a call costs before its first sample, without and with gradients, in values read by torchvision's operator."""
SAMPLE_COST = 3
"""What a sample costs, however few channels it has, in the same unit."""


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    mask: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    """torchvision's ``deform_conv2d``, faster on a CPU: ``[n c height width]`` to ``[n out h w]``.

    ``offset`` is ``[n 2·g·K h w]``, channels (dy, dx) interleaved, kernel points row-major, offset groups outermost, in
    input cells; ``mask``, the modulation, ``[n g·K h w]`` or None (v1); ``weight`` ``[out c/groups kh kw]``. Groups are
    inferred from ``weight``, the g offset groups from ``offset``. Integers or (y, x) pairs for the rest.

    ``impl``: ``"embedding_bag"`` (pure PyTorch), ``"torchvision"``, or ``"auto"``: the first on a CPU, torchvision's on
    every other device, for a few cells or channels, and while tracing or compiling. The environment variable
    ``DEFORMSCOPE_DEFORM_IMPL``, read when this module is imported, decides what ``"auto"`` means. Gradients for all
    five tensors, once (neither implementation has a double backward).

    A sampling point whose offset is NaN or infinite lies outside the map: it contributes zero and its gradients are
    zero. Half precisions compute coordinates and interpolation in float32 and round afterwards; under autocast the
    output has autocast's dtype. Corners of weight zero do not let NaN features through (embedding_bag only).

    Raises DeformscopeError when shapes, dtypes or devices do not fit each other.

    Example:
        >>> x, weight = torch.randn(1, 4, 10, 12), torch.randn(8, 4, 3, 3)
        >>> offset = torch.zeros(1, 18, 10, 12)             # (dy, dx) of 9 kernel points, in cells of x
        >>> y = deform_conv2d(x, offset, weight, padding=1)
        >>> torch.allclose(y, torch.nn.functional.conv2d(x, weight, padding=1), atol=1e-5)
        True
    """
    if has_torch_function((input, offset, weight)):  # a mode looks on, as :mod:`.intercept`'s
        args = (input, offset, weight, bias, stride, padding, dilation, mask)
        return handle_torch_function(deform_conv2d, (input, offset, weight), *args, impl=impl)
    chosen = default_impl if impl == "auto" else impl
    if chosen in ("auto", "torchvision") and followed():
        return followed_deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)
    geometry = check(input, offset, weight, bias, stride, padding, dilation, mask)
    if chosen == "auto":
        needs_grad = torch.is_grad_enabled() and any(
            tensor is not None and tensor.requires_grad for tensor in (input, offset, weight, bias, mask)
        )
        pays = geometry.samples * (geometry.sample_channels - SAMPLE_COST) > FIXED_COST[needs_grad]
        chosen = "embedding_bag" if pays and input.is_cpu else "torchvision"
    elif chosen not in IMPLEMENTATIONS:
        source = f"{VARIABLE}={chosen!r}" if impl == "auto" else f"impl={impl!r}"
        raise DeformscopeError(f"{source}: expected one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    # A tiny map's convolution takes no longer than ten such lines; asking a device for its name costs it 3 %.
    kind, dtype = "cpu" if input.is_cpu else input.device.type, input.dtype
    autocast, given = torch.is_autocast_enabled(kind), weight
    if autocast and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if weight.dtype != dtype or (bias is not None and bias.dtype != dtype):
        name, tensor = ("weight", weight) if bias is None or weight.dtype != dtype else ("bias", bias)
        raise DeformscopeError(f"{name} of dtype {tensor.dtype}: expected input's, {dtype}; convert one of them")
    observer = local.observer
    if observer is None or followed():
        return _computed(chosen, input, offset, weight, bias, mask, geometry, dtype, autocast)
    kernel, stride, padding, dilation = geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation
    return observer(
        lambda: _computed(chosen, input, offset, weight, bias, mask, geometry, dtype, autocast),
        lambda output: DeformCall(input, given, offset, mask, output, kernel, stride, padding, dilation),
    )


def _computed(
    impl: str,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    geometry: Geometry,
    dtype: torch.dtype,
    autocast: bool,
) -> Tensor:
    """What a call with these checked arguments puts out, in ``dtype``."""
    if impl == "torchvision":
        if not autocast:
            return _as(dtype, _torchvision(input, offset, weight, bias, mask, geometry))
        with without_autocast(input.device.type):
            return _torchvision(input, offset, weight, bias, mask, geometry).to(dtype)
    if dtype == torch.float16:  # whose matrix product is several times slower than float32's on a CPU
        weight, bias = weight.float(), None if bias is None else bias.float()
    return embedding_bag.deform_conv2d(input, offset, weight, bias, mask, geometry).to(dtype)


def _torchvision(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: Geometry
) -> Tensor:
    """torchvision's operator, without its traps: NaN offsets crash it, half precision rounds its coordinates."""
    import torchvision  # noqa: F401  (registers the operator)

    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    offset = _as(wide, offset)
    # The operator itself, not torchvision's function around it, whose checks were made already: a tiny map would pay
    # twice, and again for a choice among overloads. It wants tensors where there is no bias or modulation.
    return torch.ops.torchvision.deform_conv2d.default(
        _as(wide, input),
        _as(wide, weight),
        _finite(offset, geometry),
        offset.new_zeros(input.shape[0], 1) if mask is None else _as(wide, mask),
        offset.new_zeros(weight.shape[0]) if bias is None else _as(wide, bias),
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
        geometry.groups,
        geometry.offset_groups,
        mask is not None,
    )


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """In this dtype; of one that it has already not even the call's price (10 µs), which a tiny map would feel."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _finite(offset: Tensor, geometry: Geometry) -> Tensor:
    """The offsets, those that are NaN or infinite replaced by such as point out of the map from everywhere."""
    # With gradients, on a tiny map, the replacement takes longer than all else around the operator, and a sum tells
    # whether it is needed: with a NaN or an infinity it is one. A GPU would have to wait for it.
    known = offset.requires_grad and type(offset) is Tensor and offset.is_cpu
    if known and math.isfinite(offset.detach().sum().item()):
        return offset
    return offset.nan_to_num(geometry.outside, geometry.outside, geometry.outside)


# torch.jit.script compiles this in its place.
deform_conv2d.__prepare_scriptable__ = scriptable  # type: ignore[attr-defined]

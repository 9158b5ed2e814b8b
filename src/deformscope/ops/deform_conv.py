"""Deformable convolution v1 and v2 (Dai et al., ICCV 2017; Zhu et al., CVPR 2019), by the fastest implementation."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import DeformscopeError
from . import embedding_bag
from .autocast import without_autocast
from .geometry import Geometry, check
from .observe import DeformCall, report

IMPLEMENTATIONS = ("auto", "torchvision", "embedding_bag")
VARIABLE = "DEFORMSCOPE_DEFORM_IMPL"
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
    ``DEFORMSCOPE_DEFORM_IMPL`` decides what ``"auto"`` means. Gradients for all five tensors, once (neither
    implementation has a double backward).

    A sampling point whose offset is NaN or infinite lies outside the map: it contributes zero and its gradients are
    zero. Half precisions compute coordinates and interpolation in float32 and round afterwards; under autocast the
    output has autocast's dtype. Corners of weight zero do not let NaN features through (embedding_bag only).

    Raises DeformscopeError when shapes, dtypes or devices do not fit each other.
    """
    geometry = check(input, offset, weight, bias, stride, padding, dilation, mask)
    needs_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (input, offset, weight, bias, mask)
    )
    chosen = _implementation(impl, input, geometry, needs_grad)
    kind, dtype = input.device.type, input.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != dtype:
            raise DeformscopeError(f"{name} of dtype {tensor.dtype}: expected input's, {dtype}; convert one of them")
    if chosen == "torchvision":
        return _as(dtype, _torchvision(input, offset, weight, bias, mask, geometry))
    if dtype == torch.float16:  # whose matrix product is several times slower than float32's on a CPU
        weight, bias = weight.float(), None if bias is None else bias.float()
    output = embedding_bag.deform_conv2d(input, offset, weight, bias, mask, geometry).to(dtype)
    report(
        DeformCall(
            input, offset, mask, output, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation
        )
    )
    return output


def _implementation(impl: str, input: Tensor, geometry: Geometry, needs_grad: bool) -> str:
    source = f"impl={impl!r}"
    if impl == "auto" and (forced := os.environ.get(VARIABLE)):
        impl, source = forced, f"{VARIABLE}={forced!r}"
    if impl not in IMPLEMENTATIONS:
        raise DeformscopeError(f"{source}: expected one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl != "auto":
        return impl
    if input.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return "torchvision"
    samples = len(input) * geometry.offset_groups * geometry.points * math.prod(geometry.output_size)
    channels = input.shape[1] // geometry.offset_groups
    pays = samples * (channels - SAMPLE_COST) > FIXED_COST[needs_grad]
    return "embedding_bag" if pays else "torchvision"


def _torchvision(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None, geometry: Geometry
) -> Tensor:
    """torchvision's operator, without its traps: NaN offsets crash it, half precision rounds its coordinates."""
    import torchvision  # noqa: F401  (registers the operator)

    wide = torch.promote_types(input.dtype, torch.float32)
    offset = _as(wide, offset)
    if not _surely_finite(offset):
        # Far enough that no kernel point of any cell reaches the map; rounded away from it even in half precision.
        outside = -2.0 * (max(geometry.input_size) + max(geometry.padding) + 1)
        offset = offset.nan_to_num(outside, outside, outside)
    # The operator itself, not torchvision's function around it, whose checks were made already: a tiny map would pay
    # twice, and again for a choice among overloads. It wants tensors where there is no bias or mask.
    bias = offset.new_zeros(len(weight)) if bias is None else _as(wide, bias)
    modulation = offset.new_zeros(len(input), 1) if mask is None else _as(wide, mask)
    with without_autocast(input.device.type):
        return torch.ops.torchvision.deform_conv2d.default(
            _as(wide, input),
            _as(wide, weight),
            offset,
            modulation,
            bias,
            *geometry.stride,
            *geometry.padding,
            *geometry.dilation,
            geometry.groups,
            geometry.offset_groups,
            mask is not None,
        )


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """In this dtype; of one that it has already not even the call's price, which a tiny map would feel."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def _surely_finite(offset: Tensor) -> bool:
    """No NaN and no infinity is among them, as far as it costs nothing to know: on a CPU.

    A sum with one of them is one itself. On a tiny map replacing them takes longer than all else around the operator.
    A GPU would have to wait for the sum, and a tracer would keep this call's answer for all.
    """
    plain = type(offset) is Tensor and offset.device.type == "cpu"
    if not plain or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return math.isfinite((offset.detach() if offset.requires_grad else offset).sum().item())

"""One small reader per family of learned samplers: from an operator's arguments and output to one call's record.

A family that runs as an operator of its own is read here by the operator's name; deformscope's own operator announces
its calls itself (:mod:`deformscope.ops.observe`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fields.field import OffsetField, Placement
from ..ops.observe import DeformCall

DEFORM_CONV = "torchvision::deform_conv2d"
ARGUMENTS = (
    *("input", "weight", "offset", "mask", "bias", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h"),
    *("dilation_w", "groups", "offset_groups", "use_mask"),
)
"""Of torchvision's operator."""


def deform_conv_call(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> DeformCall:
    """A call of ``torchvision::deform_conv2d``."""
    values = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    kernel = values["weight"].shape[-2:]
    pairs = [(values[f"{name}_h"], values[f"{name}_w"]) for name in ("stride", "pad", "dilation")]
    mask = values["mask"] if values["use_mask"] else None
    return DeformCall(values["input"], values["weight"], values["offset"], mask, out, (kernel[0], kernel[1]), *pairs)


Reader = Callable[[tuple[Any, ...], dict[str, Any], Tensor], DeformCall]
READERS: dict[str, Reader] = {DEFORM_CONV: deform_conv_call}
"""By the operator's name."""


def arguments(call: DeformCall) -> tuple[Any, ...]:
    """A call's arguments as torchvision's operator has them, as far as geometry goes."""
    return call.input, call.weight, None, None, None, *call.stride, *call.padding, *call.dilation


def field_of(call: DeformCall, placements: Sequence[Placement], **known: Any) -> OffsetField:
    """The call's offset field, with what else is ``known`` of it.

    Copies, since the model may go on to change its tensors in place; made outside of inference mode, so that the user
    can calculate with them freely.
    """
    n, channels, h, w = call.offset.shape
    points = call.kernel_size[0] * call.kernel_size[1]
    groups = channels // (2 * points)
    with torch.inference_mode(False), torch.no_grad():
        offset, mask = _copied(call.offset), None if call.mask is None else _copied(call.mask)
    return OffsetField(
        offset=offset.view(n, groups, points, 2, h, w).movedim(3, -1),
        modulation=None if mask is None else mask.view(n, groups, points, h, w),
        kernel_size=call.kernel_size,
        stride=call.stride,
        padding=call.padding,
        dilation=call.dilation,
        input_size=(call.input.shape[-2], call.input.shape[-1]),
        # A call inside a region-of-interest head has its own count of maps, which are no photos.
        placements=tuple(placements) if len(placements) == n else (),
        **known,
    )


def _copied(tensor: Tensor) -> Tensor:
    """A contiguous copy as float32 or float64."""
    dtype = tensor.dtype if tensor.dtype in (torch.float32, torch.float64) else torch.float32
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)


def finite_offsets(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, with NaN and infinite offsets led beyond the map, where torchvision's operator would crash."""
    if name != DEFORM_CONV or len(args) < 11 or bool(args[2].isfinite().all()):
        return args
    outside = -2.0 * (max(args[0].shape[-2:]) + max(args[7:9]) + 1)
    return (*args[:2], args[2].nan_to_num(outside, outside, outside), *args[3:])

"""One small reader per family of learned samplers: from an operator's arguments and output to one call's record.

A family that runs as an operator of its own is read here by the operator's name; deformscope's own operator announces
its calls itself (:mod:`deformscope.ops.observe`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..fields.field import OffsetField, Placement
from ..ops.observe import DeformCall
from . import kernels

DEFORM_CONV = "torchvision::deform_conv2d"
ARGUMENTS = (
    *("input", "weight", "offset", "mask", "bias", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h"),
    *("dilation_w", "groups", "offset_groups", "use_mask"),
)
"""Of torchvision's operator."""
TVDCN_ARGUMENTS = "input", "weight", "offset", "mask", "bias", "stride", "padding", "dilation", "groups"


def deform_conv_call(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> DeformCall:
    """A call of ``torchvision::deform_conv2d``."""
    values = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
    kernel = values["weight"].shape[-2:]
    stride, pad, dilation = ((values[f"{name}_h"], values[f"{name}_w"]) for name in ("stride", "pad", "dilation"))
    return DeformCall(
        values["input"],
        values["weight"],
        values["offset"],
        values["mask"] if values["use_mask"] else None,
        out,
        (kernel[0], kernel[1]),
        stride,
        pad,
        dilation,
    )


def tvdcn_call(args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> DeformCall | None:
    """A call of ``tvdcn::deform_conv2d``, which has its arguments in another order; None without offsets."""
    given = dict.fromkeys(TVDCN_ARGUMENTS) | {"stride": 1, "padding": 0, "dilation": 1}
    return kernels.deform_conv_call(given | dict(zip(TVDCN_ARGUMENTS, args, strict=False)) | kwargs, out)


Reader = Callable[[tuple[Any, ...], dict[str, Any], Tensor], DeformCall | None]
READERS: dict[str, Reader] = {DEFORM_CONV: deform_conv_call, "tvdcn::deform_conv2d": tvdcn_call}
"""By the operator's name."""
SAMPLER_NAMES = re.compile(r"deform|dcn|msda", re.IGNORECASE)
_others: set[str] = set()


def other_operators(*, look: bool) -> frozenset[str]:
    """Loaded operators that are named like samplers and have no reader; ``look`` for them, or tell the known ones.

    With backward passes of their own left out, and what is private to a library.
    """
    names = getattr(torch._C, "_dispatch_get_all_op_names", None)
    if look and names is not None:
        for name in {one.split(".")[0] for one in names()}:
            operator = name.split("::")[-1]
            if SAMPLER_NAMES.search(operator) and not operator.startswith("_") and "backward" not in operator:
                _others.add(name)
        _others.difference_update(READERS)
    return frozenset(_others)


def named_arguments(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of an operator's call by name."""
    namespace, name = operator.split("::")
    schema = getattr(getattr(torch.ops, namespace), name).default._schema
    return dict(zip([one.name for one in schema.arguments], args, strict=False)) | kwargs


def arguments(call: DeformCall) -> tuple[Any, ...]:
    """A call's arguments as torchvision's operator has them, as far as geometry goes."""
    weight = torch.Size((0, *call.kernel_size)) if call.weight is None else call.weight
    return call.input, weight, None, None, None, *call.stride, *call.padding, *call.dilation


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
        absent=call.absent,
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

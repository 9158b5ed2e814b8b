"""Deformable convolutions, each family read in its own convention: torchvision, mmcv, Detectron2, tvdcn, DCNv3, DCNv4.

torchvision's order of offset channels is that of the whole project: by group, then kernel points row by row, then
(dy, dx). DCNv3 and DCNv4 have channels last, (dx, dy), points column by column, and scale the kernel's grid too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..fields.field import OffsetField
from ..fields.places import Pair, Placement
from ..ops.observe import DeformCall
from .attention import BOTH, LOCATIONS
from .events import Event, NotUnderstood

DEFORM_CONV = "torchvision::deform_conv2d"
ARGUMENTS = (
    *("input", "weight", "offset", "mask", "bias", "stride_h", "stride_w", "pad_h", "pad_w", "dilation_h"),
    *("dilation_w", "groups", "offset_groups", "use_mask"),
)
"""Of torchvision's operator."""
TVDCN_ARGUMENTS = "input", "weight", "offset", "mask", "bias", "stride", "padding", "dilation", "groups"


def deform_conv(event: Event) -> DeformCall:
    """A call of ``torchvision::deform_conv2d``."""
    values = event.named(*ARGUMENTS)
    kernel = values["weight"].shape[-2:]
    stride, pad, dilation = ((values[f"{name}_h"], values[f"{name}_w"]) for name in ("stride", "pad", "dilation"))
    mask = values["mask"] if values["use_mask"] else None
    tensors = values["input"], values["weight"], values["offset"], mask, event.output
    return DeformCall(*tensors, (kernel[0], kernel[1]), stride, pad, dilation)


def tvdcn(event: Event) -> DeformCall | None:
    """A call of ``tvdcn::deform_conv2d``, which has its arguments in another order; None without offsets."""
    optional = dict.fromkeys(("offset", "mask", "bias"))
    return compiled_call(event.named(*TVDCN_ARGUMENTS, **optional, stride=1, padding=0, dilation=1), event.output)


OPERATORS: dict[str, Callable[[Event], DeformCall | None]] = {DEFORM_CONV: deform_conv, "tvdcn::deform_conv2d": tvdcn}
"""Readers by the operator's name."""


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


def finite_offsets(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments of torchvision's operator, with NaN and infinite offsets led beyond the map, where it would crash."""
    if len(args) < 11 or bool(args[2].isfinite().all()):
        return args
    outside = -2.0 * (max(args[0].shape[-2:]) + max(args[7:9]) + 1)
    return (*args[:2], args[2].nan_to_num(outside, outside, outside), *args[3:])


def function(event: Event) -> DeformCall | None:
    """The deformable convolution that an autograd Function has computed; None if it computed something else.

    Raises NotUnderstood for a sampler of another kind.
    """
    given, out = event.kwargs, event.output
    if "offset_mask" in given and _is_map(given["offset_mask"], 4):
        return dcnv4_call(given, out)
    if any(name in given for name in (*LOCATIONS, BOTH)):
        raise NotUnderstood("it samples outside of a module with layers sampling_offsets and attention_weights")
    offset = given.get("offset")
    if not _is_map(offset, 3):
        return None  # an argument of that name is no rare thing
    assert isinstance(offset, Tensor)
    if offset.ndim != 4 or not isinstance(out, Tensor) or out.ndim != 4:
        raise NotUnderstood(f"it samples in {offset.ndim - 2} dimensions, and not in two")
    if {"mask", "kernel_h", "kernel_w", "group", "offset_scale"} <= set(given):
        return dcnv3_call(given, out)
    if {"weight", "stride", "padding", "dilation"} <= set(given):
        return compiled_call(given, out)
    raise NotUnderstood("its arguments are those of no known deformable convolution")


def _is_map(value: Any, least: int) -> bool:
    return isinstance(value, Tensor) and value.ndim >= least and value.is_floating_point()


def compiled_call(given: Mapping[str, Any], out: Tensor) -> DeformCall | None:
    """A call of mmcv's, Detectron2's or tvdcn's DCN or DCNv2: torchvision's convention, pairs or single numbers.

    None for tvdcn's without offsets, which is a plain convolution.
    """
    offset, weight, mask = given["offset"], given["weight"], given.get("mask")
    if offset is None:
        return None
    kernel = weight.shape[-2], weight.shape[-1]
    points = kernel[0] * kernel[1]
    groups = offset.shape[1] // (2 * points)
    if weight.ndim != 4 or not groups or offset.shape[1] != 2 * points * groups:
        raise NotUnderstood(f"offsets of shape {tuple(offset.shape)} for weights of shape {tuple(weight.shape)}")
    if mask is not None and mask.shape[1] != points * groups:
        offset, mask = _in_step(offset, mask, groups, points)
    return DeformCall(
        given["input"],
        weight,
        offset,
        mask,
        out,
        kernel,
        _pair(given["stride"]),
        _pair(given["padding"]),
        _pair(given["dilation"]),
        made=given["offset"],
    )


def _in_step(offset: Tensor, mask: Tensor, groups: int, points: int) -> tuple[Tensor, Tensor]:
    """Offsets and modulation in as many groups, where tvdcn has fewer of one than of the other."""
    weighed = mask.shape[1] // points
    most = max(groups, weighed)
    if not weighed or mask.shape[1] != weighed * points or most % groups or most % weighed:
        raise NotUnderstood(f"{offset.shape[1]} channels of offsets and {mask.shape[1]} of modulation")
    repeated = [
        one.unflatten(1, (count, -1)).repeat_interleave(most // count, dim=1).flatten(1, 2)
        for one, count in ((offset, groups), (mask, weighed))
    ]
    return repeated[0], repeated[1]


def dcnv3_call(given: Mapping[str, Any], out: Tensor) -> DeformCall:
    """A call of DCNv3 (InternImage): ``offset`` [n h w g·p·2] and ``mask`` [n h w g·p], the softmax taken."""
    return _scaled_call(given, given["offset"], given["mask"], out)


def dcnv4_call(given: Mapping[str, Any], out: Any) -> DeformCall:
    """A call of DCNv4: ``offset_mask`` [n h w c], by group first 2·p offsets, then p masks, which may be negative;
    c is the next multiple of 8."""
    both = given["offset_mask"]
    points = given["kernel_h"] * given["kernel_w"] - bool(given.get("remove_center"))
    groups = given["group"]
    if both.ndim != 4 or both.shape[-1] < 3 * groups * points or not isinstance(out, Tensor):
        raise NotUnderstood(f"offset_mask of shape {tuple(both.shape)} for {groups} groups of {points} points")
    by_group = both[..., : 3 * groups * points].unflatten(-1, (groups, 3 * points))
    offset, mask = by_group[..., : 2 * points].flatten(-2), by_group[..., 2 * points :].flatten(-2)
    return _scaled_call({**given, "made": both}, offset, mask, out)


def _scaled_call(given: Mapping[str, Any], offset: Tensor, mask: Tensor, out: Tensor) -> DeformCall:
    kernel: Pair = (given["kernel_h"], given["kernel_w"])
    dilation: Pair = (given["dilation_h"], given["dilation_w"])
    groups, centre = given["group"], not given.get("remove_center")
    points = kernel[0] * kernel[1] - (not centre)
    if offset.ndim != 4 or offset.shape[-1] != 2 * groups * points or mask.shape[-1] != groups * points:
        raise NotUnderstood(f"offsets of shape {tuple(offset.shape)} for {groups} groups of {points} points")
    if not centre and (kernel[0] != kernel[1] or kernel[0] % 2 == 0):
        raise NotUnderstood(f"a kernel of {kernel} has no centre to leave out")
    moved = by_rows(offset.detach().unflatten(-1, (groups, points, 2)).flip(-1), kernel)
    weights = by_rows(mask.detach().unflatten(-1, (groups, points, 1)), kernel, 0.0)
    moved = moved.to(torch.promote_types(moved.dtype, torch.float32))
    scale = float(given["offset_scale"])
    return DeformCall(
        given["input"].permute(0, 3, 1, 2),
        None,
        (moved * scale + from_grid(kernel, dilation, scale).to(moved)).permute(0, 3, 4, 5, 1, 2).flatten(1, 3),
        weights[..., 0].permute(0, 3, 4, 1, 2).flatten(1, 2),
        out,
        kernel,
        (given["stride_h"], given["stride_w"]),
        (given["pad_h"], given["pad_w"]),
        dilation,
        made=given.get("made", given.get("offset")),
        channels_last=given["input"],
        absent=() if centre else (kernel[0] * kernel[1] // 2,),
    )


def by_rows(
    values: Float[Tensor, "n h w g p c"], kernel: Pair, centre: float | None = None
) -> Float[Tensor, "n h w g k c"]:
    """Points that were counted column by column, row by row.

    Where the centre is left out, it is put in: as this value, or as the mean of the others.
    """
    rows, columns = kernel
    missing = rows * columns - values.shape[-2]
    if missing:
        middle = values.shape[-2] // 2
        filled = values.mean(dim=-2, keepdim=True) if centre is None else torch.full_like(values[..., :1, :], centre)
        values = torch.cat([values[..., :middle, :], filled, values[..., middle:, :]], dim=-2)
    return values.unflatten(-2, (columns, rows)).transpose(-3, -2).flatten(-3, -2)


def from_grid(kernel: Pair, dilation: Pair, scale: float) -> Float[Tensor, "k 2"]:
    """What a grid scaled by ``scale`` about the kernel's middle adds to offsets: (s − 1)·p_k, (y, x), row by row.

    The middle is the cell that these kernels call so, which for even kernels is not the mean of the points.
    """
    axes = [torch.arange(size) * step - step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True)]
    return (scale - 1.0) * torch.cartesian_prod(*axes).reshape(-1, 2).float()


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    values = [int(one) for one in value]
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])

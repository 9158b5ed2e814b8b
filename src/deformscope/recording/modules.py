"""Samplers that run as plain operators of PyTorch: recognized by the layers that their modules own.

- the pure-PyTorch ``DeformConv2d`` that many projects have copied (layers ``p_conv`` and ``m_conv``; it gathers);
- ``DCNv3_pytorch`` of InternImage (layers ``offset`` and ``mask``; one ``grid_sample`` of a padded map);
- DAT's ``DAttentionBaseline`` (``conv_offset``; one point a cell, at the positions that it returns).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..fields.attention import AttentionField
from ..fields.places import Pair, Point
from ..ops.observe import DeformCall
from .attention import attention, is_attention
from .convolutions import dcnv3_call
from .events import Event, NotUnderstood

Reader = Callable[[Event], "DeformCall | AttentionField | None"]


def reader_of(module: nn.Module) -> Reader | None:
    """The reader for calls of a module; None for one that is no known sampler."""
    layers = {name for name, _ in module.named_children()}
    if len(layers) < 2:
        return None
    if is_attention(module):
        return attention
    return next((read for owned, read in MODULES.items() if layers.issuperset(owned)), None)


def _image(event: Event) -> Tensor:
    return next(iter((*event.args, *event.kwargs.values())))


def p_conv(event: Event) -> DeformCall | None:
    """The pure-PyTorch module: offsets are planar (all dy, then all dx), and the map's first cell is counted 1.

    None for a module that only has layers of these names.
    """
    module, parts = event.module, event.parts
    size, last = getattr(module, "kernel_size", None), getattr(module, "conv", None)
    offset = parts.get("p_conv")
    if isinstance(size, (tuple, list)) and len(set(size)) == 1:
        size = size[0]
    if isinstance(getattr(module, "num_param", None), int):
        raise NotUnderstood("its p_conv moves num_param points that lie on no kernel's grid")  # AKConv, LDConv
    if offset is None or not isinstance(size, int) or not isinstance(last, nn.Conv2d):
        return None
    points, channels = size * size, offset.shape[1]
    if channels != 2 * points or last.stride != (size, size) or last.kernel_size != (size, size):
        raise NotUnderstood(f"its p_conv makes {channels} channels for a kernel of {size}×{size}")
    stride, padding = (getattr(module, name, default) for name, default in (("stride", 1), ("padding", 0)))
    step, pad = (value if isinstance(value, int) else value[0] for value in (stride, padding))
    weigh = parts.get("m_conv")
    return DeformCall(
        _image(event),
        last.weight,
        offset.unflatten(1, (2, points)).transpose(1, 2).flatten(1, 2),
        None if weigh is None else weigh.sigmoid(),
        event.output,
        (size, size),
        (step, step),
        (pad - 1 + size // 2,) * 2,
        (1, 1),
        made=offset,
    )


def dcnv3_module(event: Event) -> DeformCall:
    """InternImage's ``DCNv3_pytorch``, whose layer ``mask`` gives the logits of a softmax over a group's points."""
    module, parts = event.module, event.parts
    try:
        size, stride, pad, dilation, groups, scale = (
            getattr(module, name) for name in ("kernel_size", "stride", "pad", "dilation", "group", "offset_scale")
        )
        offset, logits = parts["offset"], parts["mask"]
    except (AttributeError, KeyError) as missing:
        raise NotUnderstood(f"it has layers offset and mask, and is no DCNv3 ({missing})") from None
    mask = logits.unflatten(-1, (groups, -1)).softmax(dim=-1).flatten(-2)
    given = {"input": _image(event), "offset": offset, "mask": mask, "group": groups, "offset_scale": scale}
    given["remove_center"] = getattr(module, "remove_center", 0)
    for name, value in (("kernel", size), ("stride", stride), ("pad", pad), ("dilation", dilation)):
        given |= {f"{name}_h": value, f"{name}_w": value}
    return dcnv3_call(given, event.output)


def dat(event: Event) -> DeformCall | None:
    """DAT's attention: (output, positions, references) [n g h w yx] in −1..1 of the map; one point for each of h × w.

    Its references lie evenly, but neither on cells nor a whole number of them apart.
    """
    if getattr(event.module, "no_off", False):
        return None
    image, output = _image(event), event.output
    aligned = not event.samplers or event.samplers[0][2]  # others sample tables
    if not (isinstance(output, tuple) and len(output) > 2 and all(isinstance(one, Tensor) for one in output[:3])):
        raise NotUnderstood("it has a conv_offset and projections like DAT's attention, and returns no positions")
    result, positions, references = output[:3]
    size: Pair = (image.shape[-2], image.shape[-1])
    if positions.ndim != 5 or positions.shape[-1] != 2 or references.shape != positions.shape:
        raise NotUnderstood(f"positions of shape {tuple(positions.shape)}; expected [n g h w 2]")
    h, w = positions.shape[2:4]
    if min(h, w) < 2:
        raise NotUnderstood(f"{h}×{w} references have no distance from one another")
    # Half the map's height and width in cells, and the middle.
    half = [(length - 1) / 2 if aligned else length / 2 for length in size]
    line = [(length - 1) / 2 for length in size]
    places = references.detach().double()
    ends = [[places[0, 0, 0, 0, axis].item(), places[0, 0, -1, -1, axis].item()] for axis in (0, 1)]
    apart = [one * (end[1] - end[0]) for one, end in zip(half, ends, strict=True)]
    step: Point = (round(apart[0] / (h - 1), 6), round(apart[1] / (w - 1), 6))  # float32 has no more
    start = [round(middle + one * end[0], 6) for middle, one, end in zip(line, half, ends, strict=True)]
    moved = (positions - references).detach() * positions.new_tensor(half)
    return DeformCall(
        image,
        None,
        moved.movedim(-1, 2).flatten(1, 2),
        None,
        result,
        (1, 1),
        step,
        (-start[0], -start[1]),
        (1, 1),
        made=event.parts.get("conv_offset"),
        places_output=False,
    )


MODULES: dict[tuple[str, ...], Reader] = {
    ("p_conv", "conv"): p_conv,
    ("dw_conv", "offset", "mask"): dcnv3_module,
    ("proj_k", "conv_offset", "proj_q", "proj_v"): dat,
}
"""Readers by the layers that their modules own."""

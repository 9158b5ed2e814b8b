"""Samplers that run as plain operators of PyTorch: known by the parts that their modules are made of.

- the pure-PyTorch ``DeformConv2d`` that many projects have copied (layers ``p_conv`` and ``m_conv``; it gathers);
- ``DCNv3_pytorch`` of InternImage (layers ``offset`` and ``mask``; one ``grid_sample`` of a padded map);
- DAT's ``DAttentionBaseline`` (``conv_offset``; one point a cell, which its output tells).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field as dataclass_field
from typing import Any

from torch import Tensor, nn

from ..fields.field import Pair, Point
from ..ops.observe import DeformCall
from .attention_call import NotUnderstood
from .kernels import dcnv3_call

Parts = Mapping[str, Tensor]
"""What layers of the module have put out, by their names."""
Read = Callable[[nn.Module, Tensor, Parts, Any, bool], "DeformCall | None"]
"""From a module, its input, its parts' outputs, its own output, and whether it samples with aligned corners."""


@dataclass
class _Call:
    """One running forward of such a module."""

    module: nn.Module
    input: Any
    parts: dict[str, Tensor] = dataclass_field(default_factory=dict)
    aligned: bool | None = None
    """Of the first sampler within; None: there was none."""
    seen: bool = False
    """A kernel within has been recorded."""


class ModuleReader:
    """Sees the calls of a model's modules of these kinds and hands each over as a call of a deformable convolution."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Module]],
        keep: Callable[[DeformCall, str], None],
        miss: Callable[[str, str], None],
        here: Callable[[], bool],
        away: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """``named``: all modules of the model, by name. ``keep`` gets the calls and the modules' names, ``miss`` the
        name of a module that is not understood, and why; ``here`` says whether what happens is to be seen, and while
        ``away`` nothing is."""
        self._keep, self._miss, self._here, self._away = keep, miss, here, away
        self._running: list[_Call] = []
        self._hooks: list[Any] = []
        self._found = [
            (name or type(module).__name__, module, *kind)
            for name, module in named
            if (kind := _kind(module)) is not None
        ]

    @property
    def wanted(self) -> bool:
        """Whether the model has any such module."""
        return bool(self._found)

    def open(self) -> None:
        """Hook the modules; a model without any costs nothing."""
        for name, module, parts, read in self._found:
            self._hooks += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leaves(name, read), always_call=True),
            ]
            for part in parts:
                if part in module._modules:
                    self._hooks.append(module.get_submodule(part).register_forward_hook(self._hears(module, part)))

    def close(self) -> None:
        """Take every hook away."""
        while self._hooks:
            self._hooks.pop().remove()
        self._running.clear()

    def sampled(self, aligned: bool) -> bool:
        """``grid_sample`` was called, with or without aligned corners; whether inside such a module."""
        if self._running and self._running[-1].aligned is None:  # the first within; others sample tables
            self._running[-1].aligned = aligned
        return bool(self._running)

    def recorded(self) -> None:
        """A kernel has been recorded: the module around it has nothing to add."""
        if self._running:
            self._running[-1].seen = True

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._here():
            self._running.append(_Call(module, next(iter((*args, *kwargs.values())), None)))

    def _hears(self, module: nn.Module, part: str) -> Callable[..., None]:
        def heard(_: nn.Module, args: Any, output: Any) -> None:
            if self._running and self._running[-1].module is module and self._here() and isinstance(output, Tensor):
                self._running[-1].parts[part] = output

        return heard

    def _leaves(self, name: str, read: Read) -> Callable[..., None]:
        def left(module: nn.Module, args: Any, output: Any) -> None:
            if not self._running or self._running[-1].module is not module or not self._here():
                return
            call = self._running.pop()
            if output is None or call.seen:  # it has raised, or is known already
                return
            try:
                with self._away():
                    found = read(module, call.input, call.parts, output, call.aligned is not False)
            except NotUnderstood as why:
                self._miss(name, str(why))
            else:
                if found is not None:
                    self._keep(found, name)

        return left


def p_conv_call(module: Any, image: Tensor, parts: Parts, output: Any, aligned: bool) -> DeformCall | None:
    """The pure-PyTorch module: offsets are planar (all dy, then all dx), and the map's first cell is counted 1.

    None for a module that only has layers of these names.
    """
    size, last = getattr(module, "kernel_size", None), module.conv
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
        image,
        last.weight,
        offset.unflatten(1, (2, points)).transpose(1, 2).flatten(1, 2),
        None if weigh is None else weigh.sigmoid(),
        output,
        (size, size),
        (step, step),
        (pad - 1 + size // 2,) * 2,
        (1, 1),
        made=offset,
    )


def dcnv3_module_call(module: Any, image: Tensor, parts: Parts, output: Any, aligned: bool) -> DeformCall:
    """InternImage's ``DCNv3_pytorch``, whose layer ``mask`` gives the logits of a softmax over a group's points."""
    try:
        size, stride, pad, dilation, groups, scale = (
            getattr(module, name) for name in ("kernel_size", "stride", "pad", "dilation", "group", "offset_scale")
        )
        offset, logits = parts["offset"], parts["mask"]
    except (AttributeError, KeyError) as missing:
        raise NotUnderstood(f"it has layers offset and mask, and is no DCNv3 ({missing})") from None
    mask = logits.unflatten(-1, (groups, -1)).softmax(dim=-1).flatten(-2)
    given = {"input": image, "offset": offset, "mask": mask, "group": groups, "offset_scale": scale}
    given["remove_center"] = getattr(module, "remove_center", 0)
    for name, value in (("kernel", size), ("stride", stride), ("pad", pad), ("dilation", dilation)):
        given |= {f"{name}_h": value, f"{name}_w": value}
    return dcnv3_call(given, output)


def dat_call(module: Any, image: Tensor, parts: Parts, output: Any, aligned: bool) -> DeformCall | None:
    """DAT's attention: (output, positions, references) [n g h w yx] in −1..1 of the map; one point for each of h × w.

    Its references lie evenly, but neither on cells nor a whole number of them apart.
    """
    if getattr(module, "no_off", False):
        return None
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
        made=parts.get("conv_offset"),
        places_output=False,
    )


KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Read]] = {
    "p_conv": (("conv",), ("p_conv", "m_conv"), p_conv_call),
    "dw_conv": (("offset", "mask"), ("offset", "mask"), dcnv3_module_call),
    "proj_k": (("conv_offset", "proj_q", "proj_v"), ("conv_offset",), dat_call),
}
"""By a layer that their modules own: the others that they own, those of which the outputs are wanted, and how a call is
read."""


def _kind(module: nn.Module) -> tuple[tuple[str, ...], Read] | None:
    children = module._modules
    for layer, (others, parts, read) in KINDS.items():
        if layer in children and all(other in children for other in others):
            return parts, read
    return None

"""Read multi-scale deformable attention: one recipe for all its classes (Zhu et al., ICLR 2021).

Every implementation (transformers, mmcv, ultralytics, rfdetr, the original) is a module that owns two layers named
``sampling_offsets`` and ``attention_weights`` and calls one ``grid_sample`` per level while it runs; every other
``grid_sample`` is none of its. Where no sampler is seen (a compiled kernel, or the discrete method, which only indexes)
the points are computed from the layers' outputs as the module computes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field as dataclass_field
from typing import Any

import torch
from torch import Tensor, nn

from ..fields.attention import AttentionField, levels_of
from ..fields.field import Pair, Placement

GRID_SAMPLER = "aten::grid_sampler"
REFERENCES = "reference_points", "refer_bbox"
"""What the modules call the reference among their arguments."""
SHAPES = "spatial_shapes_list", "spatial_shapes", "value_spatial_shapes", "input_spatial_shapes", "value_shapes"
"""And the levels' sizes."""
INNER = "sampling_locations", "sampling_loc", "sampling_grids"
"""And, in a kernel's module within, the locations."""


def is_attention(module: nn.Module) -> bool:
    """Whether a module is multi-scale deformable attention, by the two layers that all its implementations have."""
    children = module._modules  # not getattr, which looks a while for what is not there, in every module
    return "sampling_offsets" in children and "attention_weights" in children


@dataclass
class _Call:
    """One running forward of an attention module."""

    module: nn.Module
    arguments: Mapping[str, Any]
    offsets: Tensor | None = None
    """What ``sampling_offsets`` gave: [n q h·p·2]."""
    logits: Tensor | None = None
    """What ``attention_weights`` gave: [n q h·p]."""
    locations: Tensor | None = None
    """What a kernel's module within was given: [n q h l p xy] or [n q h p xy]."""
    samplers: list[tuple[Tensor, Pair, bool]] = dataclass_field(default_factory=list)
    """Of each level: the grid [n·h q p xy] in −1..1, the map's size, and ``align_corners``."""


class AttentionReader:
    """Sees the calls of a model's attention modules and hands each over as an :class:`AttentionField`."""

    def __init__(self, model: nn.Module, keep: Callable[[AttentionField], None], here: Callable[[], bool]) -> None:
        """``keep`` gets the fields, without placements; ``here`` says whether what happens is to be seen."""
        self._keep, self._here = keep, here
        self._running: list[_Call] = []
        self._input: Pair | None = None
        self._hooks: list[Any] = []
        self._model = model
        modules = [(name, module) for name, module in model.named_modules() if is_attention(module)]
        self._modules = [module for _, module in modules]
        self._names = {id(module): name or type(module).__name__ for name, module in modules}

    def open(self) -> None:
        """Hook the attention modules; a model without any costs nothing."""
        if self.wanted:
            self._hooks.append(self._model.register_forward_pre_hook(self._begin))
        for module in self._modules:
            parts = (module.get_submodule("sampling_offsets"), module.get_submodule("attention_weights"))
            self._hooks += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
                parts[0].register_forward_hook(self._offsets),
                parts[1].register_forward_hook(self._logits),
            ]
            inner = [child for child in module.children() if child not in parts and _takes_locations(child)]
            self._hooks += [child.register_forward_pre_hook(self._kernel, with_kwargs=True) for child in inner]

    @property
    def wanted(self) -> bool:
        """Whether the model has any such module."""
        return bool(self._names)

    def close(self) -> None:
        """Take every hook away."""
        while self._hooks:
            self._hooks.pop().remove()
        self._running.clear()

    def convolved(self, image: Tensor) -> None:
        """A convolution got this: the first one's is the network's input."""
        if self._input is None and image.ndim == 4:
            self._input = (image.shape[-2], image.shape[-1])

    def sampled(self, args: tuple[Any, ...]) -> None:
        """``grid_sampler`` was called; only samplers inside an attention module, on maps, are its."""
        if not self._running:
            return
        value, grid, *_, align_corners = args
        if value.ndim == 4:
            size = (value.shape[-2], value.shape[-1])
            self._running[-1].samplers.append((grid.detach().clone(), size, bool(align_corners)))

    def _begin(self, module: nn.Module, args: Any) -> None:
        if self._here():
            self._input = None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._here():
            self._running.append(_Call(module, _bound(module, args, kwargs)))

    def _kernel(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._running:
            given = _bound(module, args, kwargs)
            self._running[-1].locations = next((given[name] for name in INNER if name in given), None)

    def _offsets(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and module is self._running[-1].module.sampling_offsets and isinstance(output, Tensor):
            self._running[-1].offsets = output.detach()

    def _logits(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running and module is self._running[-1].module.attention_weights and isinstance(output, Tensor):
            self._running[-1].logits = output.detach()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._running or self._running[-1].module is not module:
            return
        call = self._running.pop()
        if output is None or call.offsets is None or call.logits is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            found = self._field(call, output)
        if found is not None:
            self._keep(found)

    def _field(self, call: _Call, output: Any) -> AttentionField | None:
        assert call.offsets is not None and call.logits is not None
        reference = next((call.arguments[name] for name in REFERENCES if name in call.arguments), None)
        sizes = [size for _, size, _ in call.samplers] or _level_sizes(call.arguments)
        if reference is None or not sizes:
            return None
        reference = reference.detach().clone().float()
        if reference.ndim == 3:
            reference = reference[:, :, None]
        reference = reference.expand(-1, -1, len(sizes), -1)
        n, q = call.offsets.shape[0], call.offsets.shape[1]
        per_level = _points_per_level(call, sizes)
        total = sum(per_level)
        heads = call.logits.shape[-1] // total
        if call.samplers:
            each = [_locations(grid, size, aligned) for grid, size, aligned in call.samplers]
            location = torch.cat(each, dim=2).view(n, heads, q, total, 2).transpose(1, 2)
        elif call.locations is not None:
            location = call.locations.detach().float().reshape(n, q, heads, total, 2)
        else:
            offsets = call.offsets.float().reshape(n, q, heads, total, 2)
            location = _moved(call.module, offsets, reference, sizes, per_level)
        extent = self._input or max(sizes)  # without a convolution before, px are cells of the finest map
        scale = location.new_tensor(extent)
        centre = reference[..., :2].flip(-1) * scale
        if reference.shape[-1] == 4:
            centre = torch.cat([centre, reference[..., 2:].flip(-1) * scale], dim=-1)
        return AttentionField(
            points=location.flip(-1).float() * scale,
            weights=_weights(call, output, (n, q, heads, total)),
            level_reference=centre,
            level=levels_of(per_level, location.device),
            level_sizes=tuple(sizes),
            input_size=extent,
            name=self._names[id(call.module)],
        )


def placed_in(field: AttentionField, placements: tuple[Placement, ...]) -> tuple[Placement, ...]:
    """The photos' placements, where there is one for each of the field's images."""
    return placements if len(placements) == field.points.shape[0] else ()


def _bound(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A forward's arguments by name, those in ``**kwargs`` among them."""
    try:
        found = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    except TypeError:  # the call will fail, and should with its own words
        return {}
    values: dict[str, Any] = {}
    for name, value in found.arguments.items():
        kind = found.signature.parameters[name].kind
        values |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return {name: value for name, value in values.items() if value is not None}


def _takes_locations(module: nn.Module) -> bool:
    return any(name in INNER for name in inspect.signature(module.forward).parameters)


def _level_sizes(arguments: Mapping[str, Any]) -> list[Pair]:
    shapes = next((arguments[name] for name in SHAPES if name in arguments), None)
    if shapes is None:
        return []
    rows = shapes.tolist() if isinstance(shapes, Tensor) else [list(map(int, row)) for row in shapes]
    return [(int(row[0]), int(row[1])) for row in rows]


def _points_per_level(call: _Call, sizes: list[Pair]) -> list[int]:
    """Some modules have another number of points on each level."""
    if call.samplers:
        return [grid.shape[2] for grid, _, _ in call.samplers]
    listed = getattr(call.module, "num_points_list", None) or getattr(call.module, "n_points_list", None)
    if listed is not None:
        return [int(points) for points in listed]
    points = getattr(call.module, "n_points", None) or getattr(call.module, "num_points", None)
    return [int(points)] * len(sizes) if points else [1] * len(sizes)


def _locations(grid: Tensor, size: Pair, aligned: bool) -> Tensor:
    """A sampler's grid in −1..1 to (x, y) in 0..1 of the map, edge to edge."""
    share = (grid.float() + 1) / 2
    if not aligned:
        return share
    cells = share.new_tensor([size[1], size[0]])
    return (share * (cells - 1) + 0.5) / cells


def _moved(module: nn.Module, offsets: Tensor, reference: Tensor, sizes: list[Pair], points: list[int]) -> Tensor:
    """Locations (x, y) in 0..1, as the modules compute them: offsets count in cells, or in shares of a half box."""
    level = levels_of(points, offsets.device)
    base = reference[:, :, level][:, :, None]
    if reference.shape[-1] == 2:
        cells = offsets.new_tensor([[w, h] for h, w in sizes])[level]
        return base + offsets / cells
    scale = getattr(module, "num_points_scale", None)
    scale = getattr(module, "n_points_scale", None) if scale is None else scale
    if scale is None:
        share = 1 / offsets.new_tensor([points[i] for i in level.tolist()])[:, None]
    else:
        share = scale.to(offsets).reshape(-1, 1)
    factor = getattr(module, "offset_scale", 0.5)
    return base[..., :2] + offsets * share * base[..., 2:] * factor


def _weights(call: _Call, output: Any, shape: tuple[int, int, int, int]) -> Tensor:
    """The weights as the module returns them, or the softmax of their logits over a head's points."""
    assert call.logits is not None
    if isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
        returned = output[1].detach()
        if returned.numel() == call.logits.numel() and returned.shape[:2] == call.logits.shape[:2]:
            return returned.clone().float().reshape(shape)
    return call.logits.clone().float().reshape(shape).softmax(dim=-1)

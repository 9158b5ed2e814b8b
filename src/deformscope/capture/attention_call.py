"""From one call of a deformable attention module to its field: where its points lie, and what they weigh.

Points come from the samplers' grids or the kernel's arguments. Where neither is seen (the discrete method, which only
indexes) they are computed from the layers' outputs; where they are seen, that computation is the check that the module
moves its points from its references as all the known ones do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field as dataclass_field
from typing import Any

import torch
from torch import Tensor, nn

from ..fields.attention import AttentionField, levels_of
from ..fields.field import Pair

REFERENCES = "reference_points", "refer_bbox"
"""What the modules call the reference among their arguments."""
SHAPES = "spatial_shapes_list", "spatial_shapes", "value_spatial_shapes", "input_spatial_shapes", "value_shapes"
"""And the levels' sizes."""
LOCATIONS = "sampling_locations", "sampling_loc", "sampling_grids"
"""And, in a kernel within, the locations."""
WEIGHTS = "attention_weights", "attn_weight", "attn_weights"
"""And the weights."""
BOTH = "sampling_loc_attn"
"""Of a head's points first all locations, then the logits of the weights (FlashDeformAttn, DCNv4's authors)."""
CHECKED = 8
"""So many queries of each image show whether points move by the known rules."""


class NotUnderstood(Exception):
    """A call of a sampler that was seen, and follows none of the known conventions; says why."""


@dataclass
class AttentionCall:
    """One running forward of an attention module."""

    module: nn.Module
    arguments: Mapping[str, Any]
    offsets: Tensor | None = None
    """What ``sampling_offsets`` gave: [n q h·p·2]."""
    logits: Tensor | None = None
    """What ``attention_weights`` gave: [n q h·p]."""
    kernel: Mapping[str, Any] = dataclass_field(default_factory=dict)
    """What a kernel within was given: locations [n q h l p xy] or [n q h p xy], and weights."""
    samplers: list[tuple[Tensor, Pair, bool]] = dataclass_field(default_factory=list)
    """Of each level: the grid [n·h q p xy] in −1..1, the map's size, and ``align_corners``."""
    volumes: bool = False
    """Maps of three dimensions were sampled."""


def attention_field(call: AttentionCall, output: Any, name: str, extent: Pair | None) -> AttentionField:
    """What an ended call has sampled, in px of a network's input of this ``extent``.

    Raises NotUnderstood for a module of another convention.
    """
    if call.volumes:
        raise NotUnderstood("it samples volumes")
    if call.offsets is None or call.logits is None or call.offsets.ndim != 3:
        raise NotUnderstood("its layers sampling_offsets and attention_weights gave nothing of shape [n q channels]")
    reference = next((call.arguments[key] for key in REFERENCES if key in call.arguments), None)
    if not isinstance(reference, Tensor) or reference.shape[-1] not in (2, 4):
        raise NotUnderstood(f"it has no argument {' or '.join(REFERENCES)} with points or boxes")
    sizes = [size for _, size, _ in call.samplers] or _level_sizes(call.kernel) or _level_sizes(call.arguments)
    if not sizes:
        raise NotUnderstood("the sizes of its maps are in no known argument")
    n, q = call.offsets.shape[:2]
    reference = _real(reference).clone()
    if reference.ndim == 3:
        reference = reference[:, :, None]
    if reference.shape[0] != n or reference.shape[1] != q or reference.shape[2] not in (1, len(sizes)):
        raise NotUnderstood(f"references of shape {tuple(reference.shape)} for {n}×{q} queries on {len(sizes)} maps")
    reference = reference.expand(-1, -1, len(sizes), -1)
    per_level = _points_per_level(call, sizes)
    total = sum(per_level)
    heads = call.logits.shape[-1] // total
    if call.logits.shape[-1] != heads * total or call.offsets.shape[-1] != 2 * heads * total:
        counted = f"{call.offsets.shape[-1]} offsets and {call.logits.shape[-1]} weights a query"
        raise NotUnderstood(f"{counted} for {total} points on its maps")
    shape = n, q, heads, total
    offsets = _real(call.offsets).reshape(*shape, 2)
    location = _seen_locations(call, shape)
    if location is None:
        location = _moved(call.module, offsets, reference, sizes, per_level)
    else:
        few = slice(0, CHECKED)
        known = _moved(call.module, offsets[:, few], reference[:, few], sizes, per_level)
        if not torch.allclose(location[:, few], known, rtol=0, atol=_rounding(call, known), equal_nan=True):
            raise NotUnderstood("it moves its points from the references by a rule of its own")
    size = extent or max(sizes)  # without a convolution before, px are cells of the finest map
    scale = location.new_tensor(size)
    centre = reference[..., :2].flip(-1) * scale
    if reference.shape[-1] == 4:
        centre = torch.cat([centre, reference[..., 2:].flip(-1) * scale], dim=-1)
    return AttentionField(
        points=location.flip(-1) * scale,
        weights=_weights(call, output, shape),
        level_reference=centre,
        level=levels_of(per_level, location.device),
        level_sizes=tuple(sizes),
        input_size=size,
        name=name,
    )


def _level_sizes(arguments: Mapping[str, Any]) -> list[Pair]:
    shapes = next((arguments[name] for name in SHAPES if name in arguments), None)
    if shapes is None:
        return []
    rows = shapes.tolist() if isinstance(shapes, Tensor) else [list(map(int, row)) for row in shapes]
    return [(int(row[0]), int(row[1])) for row in rows]


def _points_per_level(call: AttentionCall, sizes: list[Pair]) -> list[int]:
    """Some modules have another number of points on each level."""
    if call.samplers:
        return [grid.shape[2] for grid, _, _ in call.samplers]
    listed = getattr(call.module, "num_points_list", None) or getattr(call.module, "n_points_list", None)
    if listed is not None:
        return [int(points) for points in listed]
    points = getattr(call.module, "n_points", None) or getattr(call.module, "num_points", None)
    if not points:
        raise NotUnderstood("how many points it has on a map is in no known attribute")
    return [int(points)] * len(sizes)


def _seen_locations(call: AttentionCall, shape: tuple[int, int, int, int]) -> Tensor | None:
    """Where the call has sampled, (x, y) in 0..1 of the maps [n q h p 2]; None: nobody saw it sample."""
    n, q, heads, total = shape
    if call.samplers:
        if any(grid.ndim != 4 or grid.shape[0] != n * heads or grid.shape[1] != q for grid, _, _ in call.samplers):
            shapes = " and ".join(str(tuple(grid.shape)) for grid, _, _ in call.samplers)
            raise NotUnderstood(f"grids of shape {shapes} for {n} images of {heads} heads and {q} queries")
        each = [_shares(grid, size, aligned) for grid, size, aligned in call.samplers]
        return torch.cat(each, dim=2).view(n, heads, q, total, 2).transpose(1, 2)
    given = next((call.kernel[name] for name in LOCATIONS if name in call.kernel), None)
    if given is None and BOTH in call.kernel:
        given = call.kernel[BOTH][..., : 2 * total]
    if given is None:
        return None
    if given.numel() != n * q * heads * total * 2:
        raise NotUnderstood(f"a kernel within got locations of shape {tuple(given.shape)}")
    return _real(given).reshape(*shape, 2)


def _shares(grid: Tensor, size: Pair, aligned: bool) -> Tensor:
    """A sampler's grid in −1..1 to (x, y) in 0..1 of the map, edge to edge."""
    share = (_real(grid) + 1) / 2
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


def _rounding(call: AttentionCall, locations: Tensor) -> float:
    """How far two computations of the same locations may differ, in the coarsest of the types that they pass."""
    assert call.offsets is not None
    passed = [call.offsets, *(grid for grid, _, _ in call.samplers), *call.kernel.values()]
    types = {locations.dtype, *(one.dtype for one in passed if isinstance(one, Tensor) and one.is_floating_point())}
    coarsest = max(torch.finfo(dtype).eps for dtype in types)
    largest = locations.nan_to_num(0, 0, 0).abs().max().item() if locations.numel() else 0.0
    return 16 * coarsest * max(1.0, largest)


def _weights(call: AttentionCall, output: Any, shape: tuple[int, int, int, int]) -> Tensor:
    """The weights as a kernel got them or the module returns them, or the softmax of a head's logits."""
    assert call.logits is not None
    given = next((call.kernel[name] for name in WEIGHTS if name in call.kernel), None)
    if given is None and isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
        returned = output[1].detach()
        if returned.shape[:2] == call.logits.shape[:2]:
            given = returned
    if isinstance(given, Tensor) and given.numel() == call.logits.numel():
        return _real(given).clone().reshape(shape)
    return _real(call.logits).clone().reshape(shape).softmax(dim=-1)


def _real(tensor: Tensor) -> Tensor:
    """float64 stays, and everything else becomes float32, as in fields of convolutions."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()

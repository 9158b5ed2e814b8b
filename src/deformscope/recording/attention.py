"""Multi-scale deformable attention: one reader for all its classes (Zhu et al., ICLR 2021).

Every implementation (transformers, mmcv, ultralytics, rfdetr, the original) is a module that owns two layers named
``sampling_offsets`` and ``attention_weights`` and calls one ``grid_sample`` per level, or one kernel, while it runs.
Points come from the samplers' grids or the kernel's arguments. Where neither is seen (the discrete method, which only
indexes) they are computed from the layers' outputs; where they are seen, that computation checks that the module moves
its points from its references as all the known ones do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..fields.attention import AttentionField, levels_of
from ..fields.places import Pair
from .events import Event, NotUnderstood

GRID_SAMPLERS = "aten::grid_sampler", "aten::grid_sampler_2d", "aten::grid_sampler_3d", "aten::cudnn_grid_sampler"
"""What ``grid_sample`` is to the dispatcher."""
KERNEL = "value", "spatial_shapes", "level_start_index", "sampling_loc", "attn_weight", "im2col_step"
"""Arguments of the operators named ``ms_deform_attn_forward``."""
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


def is_attention(module: nn.Module) -> bool:
    """Whether a module is multi-scale deformable attention, by the two layers that all its implementations have."""
    return {"sampling_offsets", "attention_weights"} <= {name for name, _ in module.named_children()}


def aligned_corners(sampler: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of one of these has aligned corners; cuDNN's kernel knows no other way."""
    if sampler == "aten::cudnn_grid_sampler":
        return True
    return bool(args[4] if len(args) > 4 else kwargs["align_corners"])


def attention(event: Event) -> AttentionField:
    """What an ended call has sampled, in px of the network's input; where its size is not known, in cells of the finest
    map.

    Raises NotUnderstood for a module of another convention.
    """
    module, arguments = event.module, bound(event)
    offsets, logits = event.parts.get("sampling_offsets"), event.parts.get("attention_weights")
    assert module is not None
    if any(len(shape) != 4 for _, shape, _ in event.samplers):
        raise NotUnderstood("it samples volumes")
    if not isinstance(offsets, Tensor) or not isinstance(logits, Tensor) or offsets.ndim != 3:
        raise NotUnderstood("its layers sampling_offsets and attention_weights gave nothing of shape [n q channels]")
    reference = next((arguments[key] for key in REFERENCES if key in arguments), None)
    if not isinstance(reference, Tensor) or reference.shape[-1] not in (2, 4):
        raise NotUnderstood(f"it has no argument {' or '.join(REFERENCES)} with points or boxes")
    sampled = [(shape[-2], shape[-1]) for _, shape, _ in event.samplers]
    sizes = sampled or _level_sizes(event.kernel) or _level_sizes(arguments)
    if not sizes:
        raise NotUnderstood("the sizes of its maps are in no known argument")
    n, q = offsets.shape[:2]
    reference = _real(reference).clone()
    if reference.ndim == 3:
        reference = reference[:, :, None]
    if reference.shape[0] != n or reference.shape[1] != q or reference.shape[2] not in (1, len(sizes)):
        raise NotUnderstood(f"references of shape {tuple(reference.shape)} for {n}×{q} queries on {len(sizes)} maps")
    reference = reference.expand(-1, -1, len(sizes), -1)
    per_level = _points_per_level(event, sizes)
    total = sum(per_level)
    heads = logits.shape[-1] // total
    if logits.shape[-1] != heads * total or offsets.shape[-1] != 2 * heads * total:
        counted = f"{offsets.shape[-1]} offsets and {logits.shape[-1]} weights a query"
        raise NotUnderstood(f"{counted} for {total} points on its maps")
    shape = n, q, heads, total
    moves = _real(offsets).reshape(*shape, 2)
    location = _seen_locations(event, shape)
    if location is None:
        location = _moved(module, moves, reference, sizes, per_level)
    else:
        few = slice(0, CHECKED)
        known = _moved(module, moves[:, few], reference[:, few], sizes, per_level)
        if not torch.allclose(location[:, few], known, rtol=0, atol=_rounding(event, known), equal_nan=True):
            raise NotUnderstood("it moves its points from the references by a rule of its own")
    size = event.image_size or max(sizes)
    scale = location.new_tensor(size)
    centre = reference[..., :2].flip(-1) * scale
    if reference.shape[-1] == 4:
        centre = torch.cat([centre, reference[..., 2:].flip(-1) * scale], dim=-1)
    return AttentionField(
        points=location.flip(-1) * scale,
        weights=_weights(event, logits, shape),
        level_reference=centre,
        level=levels_of(per_level, location.device),
        level_sizes=tuple(sizes),
        input_size=size,
    )


def _level_sizes(arguments: Mapping[str, Any]) -> list[Pair]:
    shapes = next((arguments[name] for name in SHAPES if name in arguments), None)
    if shapes is None:
        return []
    rows = shapes.tolist() if isinstance(shapes, Tensor) else [list(map(int, row)) for row in shapes]
    return [(int(row[0]), int(row[1])) for row in rows]


def _points_per_level(event: Event, sizes: list[Pair]) -> list[int]:
    """Some modules have another number of points on each level."""
    if event.samplers:
        return [grid.shape[2] for grid, _, _ in event.samplers]
    listed = getattr(event.module, "num_points_list", None) or getattr(event.module, "n_points_list", None)
    if listed is not None:
        return [int(points) for points in listed]
    points = getattr(event.module, "n_points", None) or getattr(event.module, "num_points", None)
    if not points:
        raise NotUnderstood("how many points it has on a map is in no known attribute")
    return [int(points)] * len(sizes)


def _seen_locations(event: Event, shape: tuple[int, int, int, int]) -> Tensor | None:
    """Where the call has sampled, (x, y) in 0..1 of the maps [n q h p 2]; None: nobody saw it sample."""
    n, q, heads, total = shape
    if event.samplers:
        if any(grid.ndim != 4 or grid.shape[0] != n * heads or grid.shape[1] != q for grid, _, _ in event.samplers):
            shapes = " and ".join(str(tuple(grid.shape)) for grid, _, _ in event.samplers)
            raise NotUnderstood(f"grids of shape {shapes} for {n} images of {heads} heads and {q} queries")
        each = [_shares(grid, (shape[-2], shape[-1]), aligned) for grid, shape, aligned in event.samplers]
        return torch.cat(each, dim=2).view(n, heads, q, total, 2).transpose(1, 2)
    given = next((event.kernel[name] for name in LOCATIONS if name in event.kernel), None)
    if given is None and BOTH in event.kernel:
        given = event.kernel[BOTH][..., : 2 * total]
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


def _rounding(event: Event, locations: Tensor) -> float:
    """How far two computations of the same locations may differ, in the coarsest of the types that they pass."""
    passed = [event.parts["sampling_offsets"], *(grid for grid, _, _ in event.samplers), *event.kernel.values()]
    types = {locations.dtype, *(one.dtype for one in passed if isinstance(one, Tensor) and one.is_floating_point())}
    coarsest = max(torch.finfo(dtype).eps for dtype in types)
    largest = locations.nan_to_num(0, 0, 0).abs().max().item() if locations.numel() else 0.0
    return 16 * coarsest * max(1.0, largest)


def _weights(event: Event, logits: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """The weights as a kernel got them or the module returns them, or the softmax of a head's logits."""
    given = next((event.kernel[name] for name in WEIGHTS if name in event.kernel), None)
    output = event.output
    if given is None and isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
        returned = output[1].detach()
        if returned.shape[:2] == logits.shape[:2]:
            given = returned
    if isinstance(given, Tensor) and given.numel() == logits.numel():
        return _real(given).clone().reshape(shape)
    return _real(logits).clone().reshape(shape).softmax(dim=-1)


def _real(tensor: Tensor) -> Tensor:
    """float64 stays, and everything else becomes float32, as in fields of convolutions."""
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def bound(event: Event) -> dict[str, Any]:
    """The arguments of a module's forward by name, those in ``**kwargs`` among them.

    Where a class only hands them on to the one it is made of, by the names that they have there.
    """
    values: dict[str, Any] = {}
    module = event.module
    for owner in (None, *type(module).__mro__):
        forward = getattr(module, "forward", None) if owner is None else owner.__dict__.get("forward")
        if forward is None:
            continue
        args = event.args if owner is None else (module, *event.args)
        try:
            found = inspect.signature(forward).bind_partial(*args, **event.kwargs)
        except (TypeError, ValueError):  # the call will fail, and should with its own words
            continue
        for name, value in found.arguments.items():
            kind = found.signature.parameters[name].kind
            values |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        if any(name in values for name in (*REFERENCES, *LOCATIONS)):
            break
    return {name: value for name, value in values.items() if value is not None}


def kernel_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a kernel's arguments, if they are an attention kernel's: copies, without the value maps."""
    if not any(name in given for name in (*LOCATIONS, BOTH)):
        return {}
    kept = {key: value for key, value in given.items() if value is not None and key != "value"}
    return {key: value.detach().clone() if isinstance(value, Tensor) else value for key, value in kept.items()}


def takes_locations(module: nn.Module) -> bool:
    """Whether a module is a kernel within attention, by an argument with the locations."""
    return any(name in LOCATIONS for name in inspect.signature(module.forward).parameters)

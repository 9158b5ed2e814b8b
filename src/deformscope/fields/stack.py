"""Stacked layers: the 9, 81 or 729 places that a cell samples through them (Dai et al., ICCV 2017), and one field
composed of their offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError
from .field import OffsetField
from .places import Pair

DEEPEST = 3
"""Largest number of layers that are followed: 729 places per cell."""


@dataclass(frozen=True)
class StackedPoints:
    """The places that a cell of the uppermost layer samples through the layers below it.

    Example:
        >>> found = stacked_points(upstream(fields, "heads.stride16.deform", depth=2), cell=(9, 14))
        >>> found.points[-1].shape, found.modulated
        (torch.Size([81, 2]), False)
    """

    points: tuple[Float[Tensor, "_ 2"], ...]
    """For each layer, from the uppermost down: [k, k·k', k·k'·k'' … 2], (y, x) in photo px; NaN where a parent point
    lies outside the lower layer's map, where it samples zeros."""
    weights: tuple[Float[Tensor, " _"], ...]
    """Products of the modulations along the way (ones for DCNv1)."""
    modulated: bool


def upstream(fields: Mapping[str, OffsetField], name: str, depth: int) -> list[OffsetField]:
    """The field ``name`` and those below it through which its input came, at most ``depth`` in all, lowest first.

    Parallel branches are not below it. ``fields`` are those of one forward pass by name; the way ends at a layer that
    is not among them, and at one of which it is not known what lies below.

    Example:
        >>> [one.name for one in upstream(fields, "heads.stride16.deform", depth=2)]
        ['heads.stride16.before.0', 'heads.stride16.deform']
    """
    found = [fields[name]]
    while len(found) < depth and (below := found[0].below or "") in fields:
        found.insert(0, fields[below])
    return found


def stacked_points(fields: Sequence[OffsetField], cell: Pair, group: int = 0) -> StackedPoints:
    """The sampling points of output cell (y, x) of the last of ``fields`` through all of them.

    ``fields`` (n = 1) are in the network's order, lowest first. A sampling point belongs to the nearest output cell of
    the lower layer, as in Dai et al.; layers between (1×1 convolutions, pooling) are accounted for by the places in the
    image.

    Example:
        >>> found = stacked_points(upstream(fields, "heads.stride16.deform", depth=2), cell=(9, 14))
        >>> [len(points) for points in found.points]
        [9, 81]
    """
    if not fields:
        raise DeformscopeError("fields=[]: expected at least one field")
    h, w = fields[-1].offset.shape[3:5]
    if not (0 <= cell[0] < h and 0 <= cell[1] < w):
        raise DeformscopeError(f"cell (y, x) = {tuple(cell)}: expected one of the {h}×{w} cells of {fields[-1].name!r}")
    like = fields[-1].offset
    index, inside = torch.tensor([cell], device=like.device), torch.ones(1, dtype=torch.bool, device=like.device)
    weight = like.new_ones(1)
    points, weights, network = [], [], like.new_zeros(0, 2)
    for depth, field in enumerate(reversed(fields)):
        if field.offset.shape[0] != 1:
            raise DeformscopeError(f"field {field.name!r}: {field.offset.shape[0]} images; take field.select(i)")
        if depth:
            h, w = field.offset.shape[3:5]
            index = field.output_cells.to_cells(network).round()
            size = index.new_tensor([h, w])
            inside = ((index >= 0) & (index < size)).all(dim=-1)  # comparisons with NaN are false
            index = torch.where(inside[:, None], index, 0).long()
        y, x = index.unbind(-1)
        own = min(group, field.offset.shape[1] - 1)
        cells = field.sampling_points()[0, own][:, y, x].transpose(0, 1)  # [m k 2]
        cells = torch.where(inside[:, None, None], cells, torch.nan)
        if field.modulation is not None:
            weight = (weight[:, None] * field.modulation[0, own][:, y, x].T).flatten()
        else:
            weight = weight[:, None].expand(-1, cells.shape[1]).flatten()
        network = field.input_cells.to_network(cells.flatten(0, 1))
        points.append(field.placement().to_photo(network))
        weights.append(weight)
    modulated = any(field.modulation is not None for field in fields)
    return StackedPoints(tuple(points), tuple(weights), modulated)


def composed(fields: Sequence[OffsetField]) -> OffsetField:
    """Compose the offsets of stacked layers to one field, in the place of the last of ``fields``.

    ``fields`` are in the network's order, lowest first, with kernels of one size. The lower layer adds to each kernel
    point of the upper one the mean displacement of its own point with the same index, over the places where the upper
    one samples it (bilinear, as it reads features; places outside the map sample zeros and are not counted). d_f is
    then the mean displacement of all places that a cell samples, and extents add up, so that every figure and measure
    of a field applies to the stack. The regular grids of the lower layers and all modulation are left out; offset
    groups of a lower layer are averaged, since its output mixes them. Raises DeformscopeError for kernels of different
    sizes.

    Example:
        >>> whole = composed(upstream(fields, "heads.stride16.deform", depth=2))
        >>> whole.name, whole.offset.shape == field.offset.shape
        ('heads.stride16.deform+before.0', True)
    """
    if not fields:
        raise DeformscopeError("fields=[]: expected at least one field")
    whole = fields[0]
    for upper in fields[1:]:
        if upper.kernel_size != whole.kernel_size:
            raise DeformscopeError(
                f"field {upper.name!r}: a kernel of {upper.kernel_size}, and {whole.name!r} below it one of "
                f"{whole.kernel_size}; expected kernels of one size; compose fewer layers"
            )
        offset = upper.offset + _brought(upper, whole)
        whole = replace(upper, offset=offset, modulation=None, below=whole.below, source=None)
    top = fields[-1].name
    return replace(whole, name="+".join([top, *(_within(top, field.name) for field in reversed(fields[:-1]))]))


def _within(upper: str, lower: str) -> str:
    """The lower module's name without the modules that contain both."""
    parts, around = lower.split("."), upper.split(".")[:-1]
    while around and len(parts) > 1 and parts[0] == around[0]:
        parts, around = parts[1:], around[1:]
    return ".".join(parts)


def _brought(upper: OffsetField, lower: OffsetField) -> Float[Tensor, "n g k h w 2"]:
    """The lower layer's mean displacement of each kernel point, at the upper one's samples, in the upper one's
    cells."""
    n, g, k, h, w, _ = upper.offset.shape
    ratio = [
        below / above for below, above in zip(lower.input_cells.reduction, upper.input_cells.reduction, strict=True)
    ]
    moves = (lower.offset.mean(dim=1) * lower.offset.new_tensor(ratio)).movedim(-1, 2).flatten(1, 2)  # [n 2k h' w']
    seen = lower.output_cells.to_cells(upper.input_cells.to_network(upper.sampling_points()))
    size = seen.new_tensor(moves.shape[2:])
    # Far outside, as for NaN and infinity, only zeros with weight zero are read.
    grid = ((2 * seen + 1) / size - 1).nan_to_num(-9.0, -9.0, -9.0).clamp(-9, 9).flip(-1).to(moves.dtype)
    read = F.grid_sample(
        torch.cat([moves, torch.ones_like(moves[:, :1])], dim=1),
        grid.reshape(n, g * k, h * w, 2),
        align_corners=False,
    )
    total = read.view(n, 2 * k + 1, g, k, h, w).sum(dim=3)
    mean = total[:, :-1] / total[:, -1:].clamp(min=1e-6)
    return mean.view(n, k, 2, g, h, w).permute(0, 3, 1, 4, 5, 2)

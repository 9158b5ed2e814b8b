"""Sampling points composed through stacked layers: 9, 81, 729 places that a cell looks at (Dai et al., ICCV 2017)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import DeformscopeError
from .field import OffsetField, Pair


@dataclass(frozen=True)
class StackedPoints:
    """Where a cell of the uppermost layer samples through the layers below it."""

    points: tuple[Float[Tensor, "_ 2"], ...]
    """For each layer, from the uppermost down: [k, k·k', k·k'·k'' … 2], (y, x) in photo px; NaN where a parent point
    lies outside the lower layer's map, where it samples zeros and looks at nothing."""
    weights: tuple[Float[Tensor, " _"], ...]
    """The products of the modulations along the way (ones for DCNv1)."""
    modulated: bool


def upstream(fields: Mapping[str, OffsetField], name: str, depth: int) -> list[OffsetField]:
    """The field ``name`` and those below it through which its input came, at most ``depth`` in all, lowest first.

    Branches beside it are not below it. Of a field whose ways are not known, the one before it in ``fields`` is.
    ``fields`` are those of one forward pass by name; a layer below that is not among them ends the way.
    """
    order = list(fields)
    found = [fields[name]]
    while len(found) < depth:
        below = found[0].below
        if below is None:
            index = order.index(found[0].name) - 1
            below = order[index] if index >= 0 else ""
        if below not in fields:
            break
        found.insert(0, fields[below])
    return found


def stacked_points(fields: Sequence[OffsetField], cell: Pair, group: int = 0) -> StackedPoints:
    """Compose the sampling points of output cell (y, x) of the last of ``fields`` through all of them.

    ``fields`` (n = 1) come in the network's order, lowest first. A sampling point belongs to the lower layer's output
    cell nearest to it, as in Dai et al.; layers between (1×1, pooling) are followed by their place in the image.
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
            inside = ((index >= 0) & (index < size)).all(dim=-1)  # NaN compares false
            index = torch.where(inside[:, None], index, 0).long()
        y, x = index.unbind(-1)
        own = min(group, field.offset.shape[1] - 1)
        cells = field.sampling_points()[0, own][:, y, x].transpose(0, 1)  # [m k 2]
        cells = torch.where(inside[:, None, None], cells, torch.nan)
        if field.modulation is not None:
            weight = (weight[:, None] * field.modulation[0, own][:, y, x].T).flatten()
        else:
            weight = weight[:, None].expand(-1, cells.shape[1]).flatten()
        network = field.cells.to_network(cells.flatten(0, 1))
        points.append(field.placement().to_photo(network))
        weights.append(weight)
    modulated = any(field.modulation is not None for field in fields)
    return StackedPoints(tuple(points), tuple(weights), modulated)

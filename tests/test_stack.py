"""The composition of layers equals a literal loop in float64; what leaves the map looks at nothing."""

import math

import pytest
import torch

from deformscope import CellGrid, DeformscopeError, OffsetField, Placement
from deformscope.stack import stacked_points, upstream


def layer(h, w, reduction, stride, seed, modulated, spread=1.5, dilation=1):
    random = torch.Generator().manual_seed(seed)
    return OffsetField.from_tensor(
        spread * torch.randn(1, 36, h, w, generator=random, dtype=torch.float64),
        stride=stride,
        dilation=dilation,
        offset_groups=2,
        reduction=reduction,
        modulation=torch.rand(1, 18, h, w, generator=random, dtype=torch.float64) if modulated else None,
        placements=[Placement((90, 70), scale=(1.5, 2.0), shift=(2.0, 1.0))],
        name=f"layer{seed}",
    )


def literal(fields, cell, group):
    """One point at a time, with plain floats."""
    field, lower = fields[-1], fields[:-1]
    placement = field.placements[0]
    found = []
    for k in range(9):
        at = []
        for axis in (0, 1):
            p0 = cell[axis] * field.stride[axis] - field.padding[axis]
            p_k = (k // 3, k % 3)[axis] * field.dilation[axis]
            at.append(p0 + p_k + field.offset[0, group, k, cell[0], cell[1], axis].item())
        network = [field.cells.origin[a] + field.cells.reduction[a] * at[a] for a in (0, 1)]
        weight = 1.0 if field.modulation is None else field.modulation[0, group, k, cell[0], cell[1]].item()
        if not lower:
            found.append(([(network[a] - placement.shift[a]) / placement.scale[a] for a in (0, 1)], weight))
            continue
        grid = lower[-1].output_cells
        nearest = [round((network[a] - grid.origin[a]) / grid.reduction[a]) for a in (0, 1)]
        h, w = lower[-1].offset.shape[3:5]
        if 0 <= nearest[0] < h and 0 <= nearest[1] < w:
            below = literal(lower, nearest, group)
        else:
            below = [([math.nan, math.nan], math.nan)] * 9 ** len(lower)
        found += [(point, weight * other) for point, other in below]
    return found


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_composition_equals_a_literal_loop(depth, modulated):
    fields = [
        layer(24, 20, 4.0, (1, 1), 1, modulated),
        layer(12, 20, 4.0, (2, 1), 2, modulated, dilation=2),
        layer(12, 10, (8.0, 4.0), (1, 2), 3, modulated),
    ][-depth:]
    for cell in [(0, 0), (5, 4), (11, 9)]:
        stacked = stacked_points(fields, cell, group=1)
        expected = literal(fields, cell, 1)
        assert [len(points) for points in stacked.points] == [9, 81, 729][:depth]
        points = torch.tensor([point for point, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(stacked.points[-1], points, rtol=0, atol=1e-9, equal_nan=True)
        seen = points.isfinite().all(dim=1)
        weights = torch.tensor([weight for _, weight in expected], dtype=torch.float64)
        torch.testing.assert_close(stacked.weights[-1][seen], weights[seen])
        assert stacked.modulated is modulated


def test_a_point_beside_the_lower_map_looks_at_nothing_and_keeps_its_place_in_the_order():
    upper = OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), reduction=1.0)
    lower = OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), reduction=1.0)
    reached = stacked_points([lower, upper], (0, 0)).points[-1].view(9, 9, 2)
    outside = [0, 1, 2, 3, 6]  # above and left of the map
    assert reached[outside].isnan().all()
    assert reached[[4, 5, 7, 8]].isfinite().all()


def test_wrong_cells_and_empty_stacks_are_named():
    field = OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), name="a")
    with pytest.raises(DeformscopeError, match=r"cell \(y, x\) = \(4, 0\): expected one of the 4×5 cells of 'a'"):
        stacked_points([field], (4, 0))
    with pytest.raises(DeformscopeError, match="expected at least one field"):
        stacked_points([], (0, 0))
    with pytest.raises(DeformscopeError, match="2 images"):
        stacked_points([OffsetField.from_tensor(torch.zeros(2, 18, 4, 5))], (0, 0))


def test_cells_of_a_grid_are_found_again():
    grid = CellGrid((4.0, 2.0), (1.5, 0.5))
    points = torch.tensor([[0.0, 0.0], [3.0, 7.0]])
    torch.testing.assert_close(grid.to_cells(grid.to_network(points)), points)


def named(name, below):
    return OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), name=name, below=below)


def test_branches_beside_a_layer_are_not_below_it():
    fields = {f.name: f for f in (named("a", ""), named("b", "a"), named("c", "a"), named("d", "c"))}
    assert [field.name for field in upstream(fields, "d", 3)] == ["a", "c", "d"]
    assert [field.name for field in upstream(fields, "d", 2)] == ["c", "d"]
    assert [field.name for field in upstream(fields, "b", 3)] == ["a", "b"]
    assert [field.name for field in upstream(fields, "a", 3)] == ["a"]


def test_without_known_ways_the_layers_before_are_below():
    fields = {name: named(name, None) for name in "abcd"}
    assert [field.name for field in upstream(fields, "c", 3)] == ["a", "b", "c"]
    assert [field.name for field in upstream(fields, "a", 3)] == ["a"]

"""The composition of layers equals a literal loop in float64; what leaves the map looks at nothing."""

import math

import numpy as np
import pytest
import torch

from deformscope import CellGrid, DeformscopeError, OffsetField, Placement
from deformscope.analysis import Analysis
from deformscope.fields.fields import Fields
from deformscope.fields.stack import composed, stacked_points, upstream
from deformscope.fields.viewpoint import extent, split


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
    field = OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), reduction=1.0, name="a")
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
    return OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), reduction=1.0, name=name, below=below)


def test_branches_beside_a_layer_are_not_below_it():
    fields = {f.name: f for f in (named("a", ""), named("b", "a"), named("c", "a"), named("d", "c"))}
    assert [field.name for field in upstream(fields, "d", 3)] == ["a", "c", "d"]
    assert [field.name for field in upstream(fields, "d", 2)] == ["c", "d"]
    assert [field.name for field in upstream(fields, "b", 3)] == ["a", "b"]
    assert [field.name for field in upstream(fields, "a", 3)] == ["a"]


def test_a_chain_ends_where_it_is_not_known_what_lies_below():
    fields = {name: named(name, below) for name, below in zip("abc", (None, None, "b"), strict=True)}
    assert [field.name for field in upstream(fields, "c", 3)] == ["b", "c"]


def whole_steps(name, seed, size=(16, 18), **geometry):
    """Offsets of whole cells, so that reading between cells and the nearest cell are one."""
    random = torch.Generator().manual_seed(seed)
    offset = torch.randint(-1, 2, (1, 18, *size), generator=random, dtype=torch.float64)
    return OffsetField.from_tensor(offset, name=name, **geometry)


def test_composed_d_f_is_the_mean_move_of_all_places_looked_at_and_extents_add():
    lower, middle, upper = (whole_steps(name, seed, reduction=8.0) for seed, name in enumerate(("a", "b", "c")))
    whole = composed([lower, middle, upper])
    assert whole.name == "c+b+a"
    assert whole.offset.shape == upper.offset.shape
    d_f, d_k = split(whole.offset)
    height, width = extent(d_k)
    for cell in [(7, 8), (8, 9), (9, 7)]:
        reached = stacked_points([lower, middle, upper], cell).points
        moved = whole.cells.to_cells(reached[-1].mean(dim=0)) - torch.tensor(cell, dtype=torch.float64)
        torch.testing.assert_close(d_f[0, 0, 0][cell], moved, rtol=0, atol=1e-9)
        # Bottom row less top row, of each layer's own points at the places from which it is looked at.
        spread = torch.zeros(2, dtype=torch.float64)
        for field, places in ((upper, [cell]), (middle, reached[0]), (lower, reached[1])):
            at = places if field is upper else field.cells.to_cells(places).round().long().tolist()
            own = split(field.offset)[1]
            spread += torch.tensor([[e[0, 0][tuple(c)] for e in extent(own)] for c in at]).mean(dim=0)
        torch.testing.assert_close(torch.stack([height[0, 0][cell], width[0, 0][cell]]), spread.to(height.dtype))


def test_composed_between_cells_and_at_other_resolutions_equals_a_literal_loop():
    lower = layer(24, 20, 4.0, (1, 1), 1, modulated=True)
    upper = layer(12, 10, 4.0, (2, 2), 2, modulated=True, dilation=2)
    whole = composed([lower, upper])
    assert whole.modulation is None
    moves = lower.offset.mean(dim=1)[0]  # over its groups
    for cell in [(0, 0), (5, 4), (11, 9)]:
        total, weights = torch.zeros(9, 2, dtype=torch.float64), 0.0
        for k in range(9):
            y, x = upper.sampling_points()[0, 1, k][cell].tolist()
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < 24 and 0 <= column < 20:
                        weight = (1 - abs(y - row)) * (1 - abs(x - column))
                        total += weight * moves[:, row, column]
                        weights += weight
        expected = upper.offset[0, 1][:, cell[0], cell[1]] + total / weights
        torch.testing.assert_close(whole.offset[0, 1][:, cell[0], cell[1]], expected)


def test_moves_of_a_coarser_layer_count_in_the_upper_layers_cells():
    coarse = OffsetField.from_tensor(torch.ones(1, 18, 6, 6), reduction=16.0)
    fine = OffsetField.from_tensor(torch.zeros(1, 18, 12, 12), reduction=8.0)
    assert torch.allclose(composed([coarse, fine]).offset, torch.full((1, 1, 9, 12, 12, 2), 2.0))


def test_what_looks_beside_the_lower_map_is_moved_by_nothing():
    lower = OffsetField.from_tensor(torch.ones(1, 18, 4, 5), reduction=1.0)
    far = OffsetField.from_tensor(torch.full((1, 18, 4, 5), 50.0), reduction=1.0)
    assert torch.equal(composed([lower, far]).offset, far.offset)
    lost = OffsetField.from_tensor(torch.full((1, 18, 4, 5), torch.nan), reduction=1.0)
    assert composed([lower, lost]).offset.isnan().all()
    assert composed([lost, lower]).offset.isnan().any()


def test_composed_is_named_by_the_upper_layer_and_how_those_below_are_called_beside_it():
    fields = [named(name, None) for name in ("heads.s8.before.0", "heads.s8.before.1", "heads.s8.deform")]
    assert composed(fields).name == "heads.s8.deform+before.1+before.0"
    assert composed([named("layer3.0.conv2", None), named("layer3.1.conv2", None)]).name == "layer3.1.conv2+0.conv2"
    assert composed([named("layer2.conv", None), named("layer3.conv", None)]).name == "layer3.conv+layer2.conv"


def test_an_analysis_gets_a_layer_more_for_each_that_has_others_below_it():
    fields = {field.name: field for field in (named("a", ""), named("b", "a"), named("c", ""))}
    analysis = Analysis(np.zeros((8, 8, 3), np.uint8), Fields(fields)).with_composed()
    assert list(analysis.fields) == ["a", "b", "b+a", "c"]
    assert analysis.fields["b+a"].below == ""


def test_one_layer_is_itself_and_kernels_of_two_sizes_are_refused():
    field = named("a", "")
    assert torch.equal(composed([field]).offset, field.offset)
    assert composed([field]).name == field.name
    with pytest.raises(DeformscopeError, match="expected kernels of one size"):
        composed([field, OffsetField.from_tensor(torch.zeros(1, 50, 4, 5), kernel_size=5)])
    with pytest.raises(DeformscopeError, match="expected at least one field"):
        composed([])

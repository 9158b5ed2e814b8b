"""Offsets of any layout become one shape, and planted offsets land on the pixel they were planted for."""

import itertools

import pytest
import torch

from deformscope import CellGrid, DeformscopeError, Fields, OffsetField, Placement


def literal_points(field, i, j, k, y, x):
    """p0·stride − padding + p_k·dilation + Δp, one number at a time."""
    row, column = divmod(k, field.kernel_size[1])
    dy, dx = field.offset[i, j, k, y, x].tolist()
    return (
        y * field.stride[0] - field.padding[0] + row * field.dilation[0] + dy,
        x * field.stride[1] - field.padding[1] + column * field.dilation[1] + dx,
    )


def test_channels_are_group_major_then_points_row_major_then_dy_dx():
    g, kernel, h, w = 2, (3, 2), 4, 5
    raw = torch.arange(2 * g * 6.0).view(1, -1, 1, 1).expand(1, -1, h, w)
    field = OffsetField.from_tensor(raw, kernel_size=kernel, offset_groups=g)
    for group, k, axis in itertools.product(range(g), range(6), range(2)):
        assert field.offset[0, group, k, 1, 2, axis] == group * 12 + 2 * k + axis
    swapped = OffsetField.from_tensor(raw, kernel_size=kernel, offset_groups=g, order="xy")
    assert swapped.offset[0, 1, 4, 0, 0].tolist() == [12 + 9, 12 + 8]


def test_sampling_points_equal_the_literal_formula(make_field):
    field = make_field(n=2)
    points = field.sampling_points()
    assert points.shape == field.offset.shape
    for i, j, k, y, x in itertools.product(range(2), range(2), range(6), (0, 3, 6), (0, 4, 9)):
        assert points[i, j, k, y, x].tolist() == pytest.approx(literal_points(field, i, j, k, y, x), abs=1e-5)


def test_modulation_and_half_precision_are_taken_in():
    raw, scalars = torch.randn(18, 4, 5).half(), torch.rand(9, 4, 5).bfloat16()
    field = OffsetField.from_tensor(raw, modulation=scalars)
    assert field.offset.dtype == field.modulation.dtype == torch.float32
    assert field.modulation.shape == (1, 1, 9, 4, 5)
    assert OffsetField.from_tensor(raw.double()).offset.dtype == torch.float64


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_planted_offsets_land_on_their_pixel(kernel, stride, dilation, groups):
    """Every kernel point of every cell is made to look at one photo px, from every corner, through all the geometry."""
    h, w, padding = 6, 9, (1, 2)
    cells = CellGrid((4.0, 8.0), (0.5, 1.5))
    placement = Placement((131, 317), scale=(0.75, 0.8), shift=(3.0, 0.0))
    points = kernel[0] * kernel[1]
    base = OffsetField.from_tensor(
        torch.zeros(1, 2 * groups * points, h, w, dtype=torch.float64),
        kernel_size=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        offset_groups=groups,
        modulation=torch.rand(1, groups * points, h, w),
    )
    for target in [(17.5, 40.5), (0.5, 0.5), (130.5, 316.5)]:
        # By hand, not by the field's own methods: photo px → network px → cells, minus the regular place.
        goal = [
            (target[a] * placement.scale[a] + placement.shift[a] - cells.origin[a]) / cells.reduction[a] for a in (0, 1)
        ]
        raw = torch.zeros(1, 2 * groups * points, h, w, dtype=torch.float64)
        for j, k, y, x in itertools.product(range(groups), range(points), range(h), range(w)):
            row, column = divmod(k, kernel[1])
            raw[0, 2 * (j * points + k), y, x] = goal[0] - (y * stride[0] - padding[0] + row * dilation[0])
            raw[0, 2 * (j * points + k) + 1, y, x] = goal[1] - (x * stride[1] - padding[1] + column * dilation[1])
        field = OffsetField.from_tensor(
            raw,
            kernel_size=kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            offset_groups=groups,
            reduction=cells.reduction,
            origin=cells.origin,
            placements=[placement],
        )
        landed = field.to_pixels(field.sampling_points())
        assert (landed - torch.tensor(target, dtype=landed.dtype)).abs().max() < 1e-9
    assert base.modulation.shape == (1, groups, points, h, w)


def test_the_cell_at_a_pixel_is_the_nearest_one(make_field):
    field = make_field(g=1)
    centres = field.to_pixels(field.centres())
    for pixel in [(1.0, 2.0), (20.0, 13.0), (47.0, 22.0)]:
        distance = (centres - torch.tensor(pixel)).norm(dim=-1)
        y, x = field.cell_at(pixel)
        assert distance[y, x] == distance.min()


def test_a_pixel_beside_the_photo_has_no_cell(make_field):
    with pytest.raises(DeformscopeError, match=r"outside the photo, which is \d+ high and \d+ wide"):
        make_field().cell_at((1e4, 3.0))


def test_displacements_scale_as_points_do(make_field):
    field = make_field(placements=[Placement((90, 70), scale=(0.5, 2.0), shift=(1.0, 2.0))])
    moved = field.to_pixels(field.sampling_points()) - field.to_pixels(field.regular_points())
    torch.testing.assert_close(moved, field.offset * torch.tensor(field.pixels_per_cell()), rtol=1e-4, atol=1e-3)


def test_one_image_of_a_batch_keeps_its_own_placement(make_field):
    placements = [Placement((10, 20)), Placement((30, 40), scale=(2.0, 2.0))]
    field = make_field(n=2, placements=placements)
    assert field.select(1).placements == (placements[1],)
    torch.testing.assert_close(field.select(1).offset[0], field.offset[1])
    with pytest.raises(DeformscopeError, match="image=2: expected an index below 2"):
        field.select(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 5}, r"offset of shape \(1, 18, 4, 5\): expected \[n 50 h w\]"),
        ({"offset_groups": 2}, r"expected \[n 36 h w\]"),
        ({"order": "zyx"}, r"order='zyx': expected one of 'yx', 'xy'"),
        ({"stride": 0}, r"stride=0: expected one int or a \(y, x\) pair"),
        ({"dilation": (1, 2, 3)}, r"dilation=\(1, 2, 3\)"),
        ({"modulation": torch.zeros(1, 8, 4, 5)}, r"modulation of shape \(1, 8, 4, 5\): expected \(1, 9, 4, 5\)"),
        ({"placements": [Placement((1, 1))] * 3}, r"placements: 3 given for 1 images"),
    ],
)
def test_wrong_arguments_are_named_with_what_was_expected(arguments, message):
    with pytest.raises(DeformscopeError, match=message):
        OffsetField.from_tensor(torch.zeros(1, 18, 4, 5), **arguments)


def test_the_repr_can_be_read(make_field):
    assert repr(make_field()) == (
        "OffsetField('layer': 1 image, 2 groups, kernel 3×2 (step 2×1), 7×10 cells, stride 16×4 network px)"
    )
    assert "kernel 3×2, 7×10 cells, stride 8×4 network px" in repr(make_field(stride=1))
    assert repr(make_field(reduction=None)).endswith("7×10 cells, places unknown)")


def test_the_table_for_notebooks_writes_strides_down_by_across(make_field):
    assert "<td>7×10</td><td>16×4</td>" in Fields({"layer": make_field()})._repr_html_()

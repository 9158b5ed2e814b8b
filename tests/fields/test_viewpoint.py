"""Eq. 2-4 and the circle radius: identities, analytic answers, and a literal re-implementation in float64."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from deformscope import DeformscopeError, divergence, extent, radius, split

sizes = st.tuples(*[st.integers(0, 2), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5)])


def random_offset(shape, seed=0):
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(sizes, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_two_viewpoints_add_up_to_the_offset_and_d_k_has_no_mean(size, seed):
    n, g, rows, h, w = size
    offset = random_offset((n, g, rows * 2, h, w), seed)
    d_f, d_k = split(offset)
    torch.testing.assert_close(d_f + d_k, offset, rtol=0, atol=1e-6)
    torch.testing.assert_close(d_k.mean(dim=2), torch.zeros_like(d_k[:, :, 0]), rtol=0, atol=1e-12)


@given(sizes, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_all_formulas_equal_literal_loops(size, seed):
    n, g, rows, h, w = size
    columns = 2
    offset = random_offset((n, g, rows * columns, h, w), seed)
    d_f, d_k = split(offset)
    div = divergence(d_f, stride=(2, 1))
    height, width = extent(d_k, (rows, columns), dilation=(1, 3))
    r = radius(d_k, (rows, columns), dilation=(1, 3))
    for i in range(n):
        for j in range(g):
            for y in range(h):
                for x in range(w):
                    points = [offset[i, j, k, y, x].tolist() for k in range(rows * columns)]
                    mean = [sum(p[axis] for p in points) / len(points) for axis in (0, 1)]
                    assert d_f[i, j, 0, y, x].tolist() == pytest.approx(mean, abs=1e-12)
                    assert div[i, j, 0, y, x].item() == pytest.approx(
                        slope([d_f[i, j, 0, v, x, 0].item() for v in range(h)], y) / 2
                        + slope([d_f[i, j, 0, y, v, 1].item() for v in range(w)], x),
                        abs=1e-12,
                    )
                    top = sum(points[c][0] for c in range(columns)) / columns
                    bottom = sum(points[(rows - 1) * columns + c][0] for c in range(columns)) / columns
                    left = sum(points[row * columns][1] for row in range(rows)) / rows
                    right = sum(points[row * columns + columns - 1][1] for row in range(rows)) / rows
                    tall, wide = bottom - top + (rows - 1), right - left + 3 * (columns - 1)
                    assert height[i, j, y, x].item() == pytest.approx(tall, abs=1e-12)
                    assert width[i, j, y, x].item() == pytest.approx(wide, abs=1e-12)
                    assert r[i, j, y, x].item() == pytest.approx(math.sqrt(max(tall, 0) * max(wide, 0)), abs=1e-12)


def slope(values, i):
    """Central inside, one-sided at the border, zero for a single value."""
    if len(values) == 1:
        return 0.0
    low, high = max(i - 1, 0), min(i + 1, len(values) - 1)
    return (values[high] - values[low]) / (high - low)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 2)])
def test_a_field_that_contracts_on_a_point_has_divergence_minus_two_everywhere(stride):
    y, x = torch.meshgrid(torch.arange(9.0) * stride[0], torch.arange(12.0) * stride[1], indexing="ij")
    d_f = torch.stack([4.5 - y, 6.25 - x], dim=-1)
    torch.testing.assert_close(divergence(d_f, stride), torch.full((9, 12), -2.0))


def test_a_rotation_neither_converges_nor_diverges():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(12.0), indexing="ij")
    d_f = torch.stack([x - 6, 4 - y], dim=-1)
    torch.testing.assert_close(divergence(d_f), torch.zeros(9, 12))


def test_height_and_width_are_not_swapped():
    rows, columns = torch.meshgrid(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([-0.5, 0.5]), indexing="ij")
    d_k = torch.stack([5 * rows, 3 * columns], dim=-1).view(1, 1, 6, 1, 1, 2)
    height, width = extent(d_k, (3, 2))
    assert (height.item(), width.item()) == (10.0, 3.0)


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_a_kernel_dilated_by_d_k_has_exactly_the_radius_of_the_formula(spread):
    grid = torch.stack(torch.meshgrid(*[torch.tensor([-1.0, 0.0, 1.0])] * 2, indexing="ij"), dim=-1)
    offset = torch.tensor([7.0, -3.0]) + spread * grid.view(1, 1, 9, 1, 1, 2).expand(1, 1, 9, 4, 5, 2)
    d_f, d_k = split(offset)
    torch.testing.assert_close(d_f, torch.tensor([7.0, -3.0]).expand(1, 1, 1, 4, 5, 2))
    torch.testing.assert_close(radius(d_k), torch.full((1, 1, 4, 5), 2 * spread))
    torch.testing.assert_close(radius(d_k, dilation=(1, 1)), torch.full((1, 1, 4, 5), 2 * spread + 2))


def test_a_kernel_drawn_together_does_not_pass_for_a_spread_one():
    grid = torch.stack(torch.meshgrid(*[torch.tensor([-1.0, 0.0, 1.0])] * 2, indexing="ij"), dim=-1)
    assert radius(-grid.view(1, 1, 9, 1, 1, 2)).item() == 0


def test_the_radius_has_finite_gradients_also_where_it_is_zero():
    offset = torch.zeros(1, 1, 9, 3, 4, 2, requires_grad=True)
    radius(split(offset)[1]).sum().backward()
    assert torch.isfinite(offset.grad).all()


def test_a_kernel_that_is_no_square_must_be_named():
    with pytest.raises(DeformscopeError, match=r"6 kernel points are no square; give kernel_size"):
        radius(torch.zeros(1, 1, 6, 2, 2, 2))
    with pytest.raises(DeformscopeError, match=r"rows · columns = 6"):
        radius(torch.zeros(1, 1, 6, 2, 2, 2), (3, 3))

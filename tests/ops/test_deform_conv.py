"""The operator against torchvision's, a literal loop, ordinary convolution, and its own numeric gradient."""

import pytest
import torch
import torch.nn.functional as F
from deform_conv_literal import Case, asymmetric, deform_conv2d_literal, random_case, relative
from hypothesis import given, settings, strategies as st

from deformscope.ops import deform_conv2d, embedding_bag

TOLERANCE = 2e-6


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_seven_literal_loops(groups, modulated):
    case = asymmetric(groups=groups, modulated=modulated)
    assert relative(case.call(), deform_conv2d_literal(case)) < 1e-12


def test_equals_the_literal_loops_far_outside_and_on_the_border():
    case = asymmetric()
    case.offset.flatten()[::3] = torch.linspace(-14, 14, len(case.offset.flatten()[::3]), dtype=torch.float64).round()
    assert relative(case.call(), deform_conv2d_literal(case)) < 1e-12


@pytest.mark.parametrize("scale", [0.0, 1.5, 30.0])
@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_output_and_all_gradients_equal_torchvisions(scale, modulated, groups):
    case = asymmetric(scale, modulated, groups)
    for found, expected in zip(case.results(), case.results("torchvision"), strict=True):
        assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize("position", range(-4, 12))
def test_the_gradient_at_whole_positions_is_torchvisions_one_sided_one(position):
    case = asymmetric(0.0)
    with torch.no_grad():
        case.offset[:, 0::2] = position
        case.offset[:, 1::2] = position - 3
    for found, expected in zip(case.results(), case.results("torchvision"), strict=True):
        assert relative(found, expected) < TOLERANCE


@pytest.mark.parametrize(("multiplier", "offset_groups"), [(1, 1), (2, 1), (1, 3), (3, 6)])
def test_depthwise_equals_torchvisions(multiplier, offset_groups, generator):
    x = torch.randn(2, 6, 8, 5, generator=generator, dtype=torch.float64)
    offset = 2 * torch.randn(2, 12 * offset_groups, 8, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(6 * multiplier, 1, 3, 2, generator=generator, dtype=torch.float64)
    case = Case(x, offset, weight, padding=(1, 1))
    for found, expected in zip(case.results(), case.results("torchvision"), strict=True):
        assert relative(found, expected) < TOLERANCE


def test_zero_offsets_are_an_ordinary_convolution(generator):
    x = torch.randn(2, 6, 11, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 2, generator=generator, dtype=torch.float64)
    plain = F.conv2d(x, weight, None, (2, 1), (1, 2), (2, 1), 2)
    offset = x.new_zeros(2, 12, *plain.shape[2:])
    assert relative(deform_conv2d(x, offset, weight, None, (2, 1), (1, 2), (2, 1)), plain) < 1e-12


def test_gradcheck_passes_away_from_whole_positions(generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offset = 1.5 * normal(1, 24, 2, 5)
    offset = torch.where((offset - offset.round()).abs() < 0.01, offset + 0.05, offset)
    leaves = [normal(1, 4, 4, 3), offset, normal(2, 2, 3, 2), normal(2), normal(1, 12, 2, 5).sigmoid()]

    def run(x, offset, weight, bias, mask):
        return deform_conv2d(x, offset, weight, bias, (2, 1), (1, 2), (1, 2), mask, impl="embedding_bag")

    assert torch.autograd.gradcheck(run, [leaf.requires_grad_() for leaf in leaves])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_arguments_agree_with_torchvision(seed):
    case = random_case(seed)
    for found, expected in zip(case.results(), case.results("torchvision"), strict=True):
        assert relative(found, expected) < TOLERANCE


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4000))
def test_cutting_into_blocks_changes_nothing(seed, limit):
    case = random_case(seed)
    whole = case.results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_bag, "BLOCK_BYTES", limit)
        for found, expected in zip(case.results(), whole, strict=True):
            assert relative(found, expected) < 1e-12


def test_many_cells_and_few_cells_lay_the_weight_out_differently_with_one_result(generator):
    weight = torch.randn(40, 6, 3, 2, generator=generator, dtype=torch.float64)
    for height in (3, 30):
        x = torch.randn(1, 6, height, 4, generator=generator, dtype=torch.float64)
        offset = torch.randn(1, 24, height, 5, generator=generator, dtype=torch.float64)
        case = Case(x, offset, weight, padding=(1, 1))
        for found, expected in zip(case.results(), case.results("torchvision"), strict=True):
            assert relative(found, expected) < TOLERANCE


def fuzz(seeds):
    disagreements = []
    for seed in seeds:
        case = random_case(seed)
        pairs = zip(case.results(), case.results("torchvision"), strict=True)
        worst = max(relative(found, expected) for found, expected in pairs)
        if not worst < TOLERANCE:
            disagreements.append((seed, worst))
    return disagreements


def test_two_hundred_random_argument_sets_agree_with_torchvision():
    assert fuzz(range(200)) == []


@pytest.mark.slow
def test_two_thousand_random_argument_sets_agree_with_torchvision():
    assert fuzz(range(1000, 3000)) == []


@pytest.mark.parametrize("modulated", [False, True])
def test_an_output_that_does_not_matter_has_gradients_of_zero(modulated):
    case = asymmetric(modulated=modulated)
    leaves = [t for t in (case.input, case.offset, case.mask) if t is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    gradients = torch.autograd.grad(0 * case.call(), leaves, torch.ones_like(case.call()))
    assert all(torch.equal(found, torch.zeros_like(leaf)) for found, leaf in zip(gradients, leaves, strict=True))

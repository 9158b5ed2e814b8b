"""What must not crash, leak or pass silently."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from deform_conv_literal import Case, asymmetric, relative

from deformscope.errors import DeformscopeError
from deformscope.ops import deform_conv2d

IMPLEMENTATIONS = ("embedding_bag", "torchvision")
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e30, -3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_offsets_that_lead_nowhere_contribute_zero_and_have_no_gradient(value, dtype, impl):
    case = asymmetric(dtype=torch.float64)
    lost = Case(case.input, torch.full_like(case.offset, value), case.weight, None, (2, 1), (1, 2), 1, case.mask)
    for result in lost.to(dtype).results(impl):
        assert float(result.abs().sum()) == 0


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("component", [0, 1])
def test_one_nan_offset_loses_its_kernel_point_and_nothing_else(component, impl):
    case = asymmetric(groups=1)
    masked = case.mask.clone()
    masked[1, 7, 2, 3] = 0.0
    expected = Case(case.input, case.offset, case.weight, case.bias, (2, 1), (1, 2), 1, masked).results()
    offset = case.offset.detach().clone()
    offset[1, 2 * 7 + component, 2, 3] = NAN
    case = replace(case, offset=offset)
    output, grad_input, grad_offset, *_ = case.results(impl)
    assert relative(output, expected[0]) < 1e-12
    assert relative(grad_input, expected[1]) < 1e-12
    assert grad_offset[1, 14:16, 2, 3].tolist() == [0.0, 0.0]
    assert relative(grad_offset, expected[2]) < 1e-12


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_process_survives_nan_offsets(impl):
    code = (
        "import torch; from deformscope.ops import deform_conv2d as d; "
        f"y = d(torch.randn(1, 4, 5, 6), torch.full((1, 18, 5, 6), float('nan')), torch.randn(3, 4, 3, 3), padding=1, "
        f"impl={impl!r}); assert y.abs().sum() == 0"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=120, check=False).returncode == 0


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_feature_reaches_only_the_cells_that_weigh_it(value):
    x, weight = torch.ones(1, 2, 9, 8), torch.ones(3, 2, 3, 3)
    x[0, :, 4, 5] = value
    output = deform_conv2d(x, torch.zeros(1, 18, 9, 8), weight, padding=1, impl="embedding_bag")
    bad = ~output[0, 0].isfinite()
    assert bad.nonzero().tolist() == [[y, x] for y in (3, 4, 5) for x in (4, 5, 6)]


def test_a_bad_feature_at_the_edge_does_not_reach_points_outside():
    x = torch.ones(1, 1, 4, 6)
    x[..., 0, :] = x[..., -1, :] = x[..., 0] = x[..., -1] = NAN
    offset = torch.full((1, 2, 4, 6), -40.0)
    assert float(deform_conv2d(x, offset, torch.ones(1, 1, 1, 1), impl="embedding_bag").abs().sum()) == 0


def test_a_bad_feature_does_not_leak_into_weight_and_modulation_gradients_of_cells_that_do_not_weigh_it():
    x = torch.ones(1, 1, 4, 6)
    x[..., 3] = NAN
    mask = torch.ones(1, 1, 4, 6, requires_grad=True)
    weight = torch.ones(1, 1, 1, 1, requires_grad=True)
    output = deform_conv2d(x, torch.zeros(1, 2, 4, 6), weight, mask=mask, impl="embedding_bag")
    output[..., :3].sum().backward()
    assert mask.grad[..., :3].eq(1).all()


def test_an_unmodulated_feature_with_zero_modulation_counts_zero_even_if_nan():
    x = torch.full((1, 1, 4, 6), NAN)
    args = x, torch.zeros(1, 2, 4, 6), torch.ones(1, 1, 1, 1)
    assert deform_conv2d(*args, mask=torch.zeros(1, 1, 4, 6), impl="embedding_bag").eq(0).all()


BAD = {
    "input of shape": dict(input=torch.zeros(1, 6, 9)),
    "input of dtype": dict(input=torch.zeros(1, 6, 9, 7, dtype=torch.int64)),
    "input of shape (1, 5": dict(input=torch.zeros(1, 5, 9, 7)),
    "offset of shape": dict(offset=torch.zeros(1, 13, 9, 8)),
    "offset of shape (2": dict(offset=torch.zeros(2, 24, 9, 8)),
    "offset of shape (1, 60": dict(offset=torch.zeros(1, 60, 9, 8)),
    "offset of shape (1, 24, 8, 9)": dict(offset=torch.zeros(1, 24, 8, 9)),
    "weight of shape": dict(weight=torch.zeros(4, 2, 3, 2)),
    "weight of shape (4, 0": dict(weight=torch.zeros(4, 0, 3, 2)),
    "weight of dtype": dict(weight=torch.zeros(4, 3, 3, 2, dtype=torch.float64)),
    "bias of shape": dict(bias=torch.zeros(3)),
    "mask of shape": dict(mask=torch.zeros(1, 12, 9, 7)),
    "stride=0": dict(stride=0),
    "stride=(1, 2, 3)": dict(stride=(1, 2, 3)),
    "stride=(1, True)": dict(stride=(1, True)),
    "padding=-1": dict(padding=-1),
    "dilation=0": dict(dilation=0),
    "input of 9×7 cells": dict(dilation=9),
    "impl='cuda'": dict(impl="cuda"),
}


@pytest.mark.parametrize("start", BAD)
def test_bad_arguments_are_named_in_one_line(start):
    good = dict(
        input=torch.zeros(1, 6, 9, 7),
        offset=torch.zeros(1, 24, 9, 8),
        weight=torch.zeros(4, 3, 3, 2),
        padding=1,
    )
    assert deform_conv2d(**good).shape == (1, 4, 9, 8)
    with pytest.raises(DeformscopeError) as error:
        deform_conv2d(**good | BAD[start])
    assert str(error.value).startswith(start)
    assert "\n" not in str(error.value)

"""Dtypes, autocast and memory formats."""

import pytest
import torch
from deform_conv_literal import asymmetric, relative

from deformscope.ops import deform_conv2d

IMPLEMENTATIONS = ("embedding_bag", "torchvision")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_lower_precisions_follow_float64_in_output_and_gradients(dtype, tolerance, impl):
    low = asymmetric(dtype=torch.float64).to(dtype)
    results = low.results(impl)
    assert {result.dtype for result in results} == {dtype}
    for found, expected in zip(results, low.to(torch.float64).results(), strict=True):
        assert relative(found.double(), expected) < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coordinates_are_float32_however_coarse_the_map(dtype):
    # At column 200 bfloat16 steps by whole cells; the map is its own column number, which survives only in the offset.
    x = torch.arange(256.0).expand(1, 1, 1, 256).to(dtype)
    offset = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 1, 256).to(dtype)
    slope = deform_conv2d(x * 0 + (x > 200), offset, torch.ones(1, 1, 1, 1, dtype=dtype), impl="embedding_bag")
    assert slope[0, 0, 0, 200] == 0.5


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_cpu_autocast_gives_its_dtype_and_float32_gradients(impl):
    case = asymmetric(dtype=torch.float32)
    expected = case.call(impl)
    with torch.autocast("cpu", torch.bfloat16):
        output = case.call(impl)
        results = case.results(impl)
    assert output.dtype == torch.bfloat16
    assert relative(output.float(), expected) < 1e-2
    assert {result.dtype for result in results[1:]} == {torch.float32}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_takes_mixed_dtypes_as_a_network_makes_them(impl):
    case = asymmetric(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = deform_conv2d(
            case.input.bfloat16(),
            case.offset,
            case.weight,
            case.bias,
            case.stride,
            case.padding,
            1,
            case.mask,
            impl=impl,
        )
    assert relative(output.float(), case.call(impl)) < 2e-2


def test_float64_stays_itself_under_autocast():
    case = asymmetric()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.call(), asymmetric().call())


def test_channels_last_in_channels_last_out():
    case = asymmetric()
    last = case.input.to(memory_format=torch.channels_last)
    geometry = (case.stride, case.padding, case.dilation)
    output = deform_conv2d(last, case.offset, case.weight, case.bias, *geometry, case.mask, impl="embedding_bag")
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output, case.call())


def test_an_empty_batch_has_an_empty_output_and_zero_gradients():
    case = asymmetric().to(torch.float32)
    empty = type(case)(
        case.input[:0], case.offset[:0], case.weight, case.bias, case.stride, case.padding, 1, case.mask[:0]
    )
    output, *gradients = empty.results()
    assert output.shape == (0, 4, 5, 10)
    assert [gradient.shape for gradient in gradients] == [leaf.shape for leaf in empty.leaves()]
    assert all(float(gradient.abs().sum()) == 0 for gradient in gradients)


def test_only_the_gradients_asked_for_are_computed_and_equal_the_rest():
    case = asymmetric()
    every = case.results()[1:]
    for index, leaf in enumerate(case.leaves()):
        for other in case.leaves():
            other.requires_grad_(other is leaf)
        output = case.call()
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        (alone,) = torch.autograd.grad(output, leaf, grad)
        assert relative(alone, every[index]) < 1e-12

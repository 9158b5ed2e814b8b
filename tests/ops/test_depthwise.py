"""The gradients of a depthwise deformable convolution against differences of the literal loops."""

import pytest
import torch
from deform_conv_literal import Case, deform_conv2d_literal, relative

from deformscope.detectors.deform import DeformConv

STEP = 1e-6


def differences(case: Case, grad: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """Central differences of Σ output · grad, by the literal loops, in every entry of ``leaf``."""
    found = torch.zeros_like(leaf)
    with torch.no_grad():
        for index in range(leaf.numel()):
            values = []
            for sign in (1, -1):
                leaf.view(-1)[index] += sign * STEP
                values.append((deform_conv2d_literal(case) * grad).sum())
                leaf.view(-1)[index] -= sign * STEP
            found.view(-1)[index] = (values[0] - values[1]) / (2 * STEP)
    return found


@pytest.mark.parametrize("impl", ["embedding_bag", "torchvision"])
@pytest.mark.parametrize(("multiplier", "offset_groups", "modulated"), [(1, 1, False), (2, 1, True), (1, 2, True)])
def test_all_gradients_are_the_differences_of_the_literal_loops(multiplier, offset_groups, modulated, impl, generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offset = 1.5 * normal(1, 12 * offset_groups, 2, 4)
    offset = torch.where((offset - offset.round()).abs() < 0.01, offset + 0.05, offset)  # where it has a gradient
    mask = normal(1, 6 * offset_groups, 2, 4).sigmoid() if modulated else None
    case = Case(normal(1, 4, 4, 3), offset, normal(4 * multiplier, 1, 3, 2), None, (2, 1), (1, 1), (1, 1), mask)
    output, *gradients = case.results(impl)
    with torch.no_grad():
        assert relative(output, deform_conv2d_literal(case)) < 1e-12
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for leaf, found in zip(case.leaves(), gradients, strict=True):
        assert relative(found, differences(case, grad, leaf)) < 1e-7


def test_a_depthwise_layer_hands_its_gradient_to_the_convolution_of_its_offsets(generator):
    layer = DeformConv(4, 4, 3, 2, groups=4).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.3, generator=generator)
    x = torch.randn(1, 4, 5, 4, generator=generator, dtype=torch.float64)
    offset = layer.conv_offset(x).detach().requires_grad_()
    case = Case(x, offset.detach(), layer.weight.detach(), None, (2, 2), (1, 1), (1, 1))
    output = layer(x)
    assert relative(output.detach(), deform_conv2d_literal(case)) < 1e-12
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (output * grad).sum().backward()
    expected = differences(case, grad, case.offset)
    assert relative(layer.conv_offset.bias.grad, expected.sum((0, 2, 3))) < 1e-6
    assert relative(layer.weight.grad, differences(case, grad, case.weight)) < 1e-6

"""The matrix product behind a convolution: oneDNN's where it pays, BLAS's elsewhere, the same numbers from both."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deformscope.ops import contraction
from deformscope.ops.contraction import SMALL_PRODUCT, _product

needs_onednn = pytest.mark.skipif(contraction._onednn is None, reason="this PyTorch is built without oneDNN")


class Operators(TorchDispatchMode):
    """Names of the operators that were called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def operands(rows: int, length: int, columns: int, transposed: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    if transposed:
        return torch.randn(1, length, rows).transpose(1, 2), torch.randn(1, columns, length).transpose(1, 2)
    return torch.randn(1, rows, length), torch.randn(1, length, columns)


def called(a: torch.Tensor, b: torch.Tensor) -> set[str]:
    with Operators() as operators:
        product = _product(a, b)
    torch.testing.assert_close(product.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)
    return operators.names & {"mkldnn::_linear_pointwise", "aten::mm", "aten::bmm"}


@needs_onednn
@pytest.mark.parametrize("transposed", [False, True])
def test_large_products_of_float32_are_onednns(transposed):
    assert called(*operands(70, 530, 901, transposed)) == {"mkldnn::_linear_pointwise"}


def test_small_products_doubles_and_groups_are_blas():
    assert SMALL_PRODUCT > 9 * 30 * 41
    assert called(*operands(9, 30, 41)) == {"aten::mm"}
    assert called(*(operand.double() for operand in operands(70, 530, 901))) == {"aten::mm"}
    a, b = operands(70, 530, 901)
    assert called(a.repeat(2, 1, 1), b.repeat(2, 1, 1)) == {"aten::bmm"}


def test_onednn_switched_off_is_not_used():
    with torch.backends.mkldnn.flags(enabled=False):
        assert called(*operands(70, 530, 901)) == {"aten::mm"}


def test_a_product_without_cells_is_empty():
    assert _product(torch.randn(1, 5, 7), torch.randn(1, 7, 0)).shape == (1, 5, 0)

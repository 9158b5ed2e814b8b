"""The losses on offsets, against fields whose answer is known."""

import math

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("deformscope.training.offset_losses", "typechecker.check"):
    from deformscope.training.offset_losses import FILL, LOSSES, Boxes, Kernels, kernels_of

from deformscope.fields.field import OffsetField

KERNEL, STRIDE, PADDING, DILATION, REDUCTION, ORIGIN = (3, 2), (2, 1), (1, 0), (1, 2), (4.0, 8.0), (2.5, 1.5)


def field_of(offset: torch.Tensor) -> OffsetField:
    """[n g k h w 2] at unequal sizes."""
    return OffsetField(offset, None, KERNEL, STRIDE, PADDING, DILATION, (9, 12), cells=_cells())


def _cells():
    from deformscope.fields.field import CellGrid

    return CellGrid(REDUCTION, ORIGIN)


def test_kernels_lie_where_a_literal_sum_puts_them(generator):
    offset = torch.randn(2, 2, 6, 4, 5, 2, generator=generator, dtype=torch.float64)
    image, y, x = torch.tensor([1, 0, 1]), torch.tensor([3, 0, 2]), torch.tensor([4, 1, 0])
    found = kernels_of(field_of(offset), image, y, x)
    for row in range(3):
        for group in range(2):
            points = []
            for k in range(6):
                rows, columns = divmod(k, 2)
                delta = offset[image[row], group, k, y[row], x[row]]
                py = y[row] * STRIDE[0] - PADDING[0] + rows * DILATION[0] + delta[0]
                px = x[row] * STRIDE[1] - PADDING[1] + columns * DILATION[1] + delta[1]
                points.append([ORIGIN[0] + REDUCTION[0] * py, ORIGIN[1] + REDUCTION[1] * px])
            points = torch.tensor(points, dtype=torch.float64)
            assert torch.allclose(found.centre[row, group], points.mean(dim=0))
            height = (points[4:, 0].mean() - points[:2, 0].mean()).clamp(min=0.2 * REDUCTION[0])
            width = (points[1::2, 1].mean() - points[::2, 1].mean()).clamp(min=0.2 * REDUCTION[1])
            assert torch.allclose(found.extent[row, group], torch.stack([height, width]))


def kernels(centre, extent) -> Kernels:
    return Kernels(torch.tensor([[centre]], dtype=torch.float64), torch.tensor([[extent]], dtype=torch.float64))


BOX = Boxes(torch.tensor([[10.0, 20.0]]).double(), torch.tensor([[5.0, 10.0]]).double())


def test_a_kernel_that_lies_on_its_box_costs_nothing():
    right = kernels([10.0, 20.0], [2 * FILL * 5, 2 * FILL * 10])
    for name, loss in LOSSES.items():
        assert loss(right, BOX).item() == pytest.approx(0, abs=1e-6), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # One side away in y, none in x: SmoothL1 of 1 with β = 1/9 is 1 − 1/18, and the mean over two axes half of it.
        ("centre", (1 - 1 / 18) / 2),
        # e times as wide in y.
        ("extent", (1 - 1 / 18) / 2),
    ],
)
def test_what_a_wrong_kernel_costs(name, value):
    wrong = kernels([20.0, 20.0], [2 * FILL * 5 * math.e, 2 * FILL * 10])
    assert LOSSES[name](wrong, BOX).item() == pytest.approx(value)

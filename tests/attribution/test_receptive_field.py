"""The effective receptive field: closed forms of plain convolutions, and how it is told in photo px."""

import numpy as np
import pytest
import torch
from torch import nn

import deformscope as ds
from deformscope import DeformscopeError, Placement
from deformscope.attribution import ReceptiveField


class Plain(nn.Module):
    """Convolutions of ones: each output sums its kernel's 3×3."""

    def __init__(self, layers, stride=1):
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(1, 1, 3, stride, 1, bias=False) for _ in range(layers)))
        for layer in self.layers:
            nn.init.ones_(layer.weight)

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_of_stacked_convolutions_it_is_the_kernels_convolved(layers):
    why = ds.explain(Plain(layers), torch.rand(1, 1, 21, 25), of=lambda out: out[0, 0, 9, 12])
    line = np.ones(1)
    for _ in range(layers):
        line = np.convolve(line, np.ones(3))
    wanted = np.zeros((21, 25))
    wanted[9 - layers : 10 + layers, 12 - layers : 13 + layers] = np.outer(line, line)
    np.testing.assert_allclose(why.receptive_field.gradient.numpy(), wanted, rtol=1e-5)
    assert not why.layers
    assert why.receptive_field.centre == pytest.approx((9.5, 12.5))


def test_a_strided_stack_sees_every_strides_th_cells_kernel():
    why = ds.explain(Plain(2, stride=2), torch.rand(1, 1, 24, 32), of=lambda out: out[0, 0, 2, 3])
    line = np.array([1, 1, 2, 1, 2, 1, 1.0])  # 3 px each around the three cells 2·2−1 … 2·2+1, at px 2·c
    wanted = np.zeros((24, 32))
    wanted[8 - 3 : 8 + 4, 12 - 3 : 12 + 4] = np.outer(line, line)
    np.testing.assert_allclose(why.receptive_field.gradient.numpy(), wanted, rtol=1e-5)


def test_channels_count_by_magnitude():
    net = nn.Conv2d(2, 1, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([3.0, -4.0]).view(1, 2, 1, 1))
    why = ds.explain(net, torch.rand(1, 2, 3, 4), of=lambda out: out[0, 0, 1, 2])
    assert why.receptive_field.gradient[1, 2] == 7
    assert why.receptive_field.gradient.sum() == 7


def field(gradient, **placement):
    return ReceptiveField(torch.as_tensor(gradient, dtype=torch.float32), Placement(**placement))


def test_figures_are_in_photo_px_and_leave_the_padding_out():
    gradient = np.zeros((8, 12))
    gradient[1, 2], gradient[3, 2] = 3, 1
    gradient[7, 11] = 50  # in the padding: the photo is 6 × 10 network px
    one = field(gradient, size=(12, 40), scale=(0.5, 0.25))
    assert one.mass.sum() == pytest.approx(1)
    assert one.centre == pytest.approx((0.75 * 3 + 0.25 * 7, 10))
    assert one.radius(0.75) == pytest.approx(1)
    assert one.radius(0.76) == pytest.approx(3)
    assert one.share_in((0, 0, 20, 5)) == pytest.approx(0.75)
    assert one.over_chance((0, 0, 20, 6)) == pytest.approx(0.75 / 0.25)
    assert one.off_centre((0, 0, 20, 8)) == pytest.approx(0)
    assert one.off_centre((0, 4, 20, 12)) == pytest.approx(4 / np.sqrt(160))
    mask = np.zeros((12, 40), dtype=bool)
    mask[6:8] = True
    assert one.share_in(mask) == pytest.approx(0.25)
    assert one.share_in(torch.from_numpy(mask)) == pytest.approx(0.25)


def test_a_shifted_photo_is_found():
    gradient = np.zeros((10, 10))
    gradient[4, 7] = 1
    one = field(gradient, size=(6, 6), scale=(1.0, 1.0), shift=(2.0, 3.0))
    assert one.centre == pytest.approx((2.5, 4.5))
    assert one.heatmap().shape == (6, 6)
    assert np.unravel_index(one.heatmap().argmax(), (6, 6)) == (2, 4)
    assert one.heatmap().max() == 1


def test_contours_hold_their_share():
    y, x = np.mgrid[:40, :60]
    one = field(np.exp(-((y - 20) ** 2 + (x - 30) ** 2) / 50), size=(40, 60))
    heat = one.heatmap()
    thin = one.heatmap(3)
    np.testing.assert_allclose(thin, heat[1::3, 1::3] / heat[1::3, 1::3].max(), rtol=1e-6)
    assert heat[heat >= one.level(0.5, heat)].sum() / heat.sum() == pytest.approx(0.5, abs=0.02)
    # Of a Gaussian of σ = 5 half lies within σ √(2 ln 2), and 95 % within σ √(2 ln 20).
    assert one.radius(0.5) == pytest.approx(5 * np.sqrt(2 * np.log(2)), abs=0.3)
    assert one.radius(0.95) == pytest.approx(5 * np.sqrt(2 * np.log(20)), abs=0.3)


def test_without_any_gradient_figures_are_nan():
    one = field(np.zeros((4, 5)), size=(4, 5))
    assert all(np.isnan(v) for v in (*one.centre, one.radius(0.5), one.share_in((0, 0, 2, 2))))


def test_wrong_regions_and_shares_are_told():
    one = field(np.ones((4, 5)), size=(4, 5))
    with pytest.raises(DeformscopeError, match=r"share=0: expected a share"):
        one.radius(0)
    with pytest.raises(DeformscopeError, match=r"region of shape \(3, 3\): expected a box"):
        one.share_in(np.ones((3, 3), dtype=bool))

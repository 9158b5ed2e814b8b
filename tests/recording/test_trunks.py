"""Places of cells behind real trunks: exact, or said to be unknown."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trunks import SEEING_ALL, TIMM, TRUNKS, Deformable, Timm

import deformscope as ds


def captured(net, size, context=torch.no_grad):
    with context(), ds.capture(net) as fields:
        net(torch.rand(1, 3, *size))
    return list(fields.values())


def places(fields):
    """(px a cell, px of the first cell's centre), without repetitions; y and x are alike in all these trunks."""
    found = [field.cells and (field.cells.reduction, field.cells.origin) for field in fields]
    assert all(one is None or (one[0][0] == one[0][1] and one[1][0] == one[1][1]) for one in found)
    return tuple(one and (one[0][0], one[1][0]) for one, _ in itertools.groupby(found))


def misplaced(net, size):
    return [
        finding for finding in ds.diagnose(net, [torch.rand(1, 3, *size)]).findings if finding.ailment == "misplaced"
    ]


@pytest.mark.parametrize("name", TRUNKS)
def test_cells_of_all_stages_lie_where_receptive_fields_do(name):
    trunk, size, expected = TRUNKS[name]
    torch.manual_seed(0)
    net = Deformable(trunk(), size)
    for context in (torch.no_grad, torch.inference_mode):
        fields = captured(net, size, context)
        assert places(fields) == expected
        assert all(field.source.misalignment == pytest.approx((0, 0), abs=1e-3) for field in fields)
        assert all(field.network_size == size for field in fields)


@pytest.mark.parametrize("name", TIMM)
def test_cells_of_timms_trunks_lie_there_or_are_said_to_be_unknown(name):
    pytest.importorskip("timm")
    size, expected = TIMM[name]
    fields = captured(Deformable(Timm(name), size), size)
    assert all(field.cells or field.unplaced for field in fields)
    if expected:
        assert places(fields) == expected


def linear(net):
    """In float64 and as a sum over each receptive field with weights above zero: gradients then show all of it."""
    for module in net.modules():
        for name, child in list(module.named_children()):
            if type(child).__name__ in ("SqueezeExcitation", "SEModule", "SqueezeExcite"):
                setattr(module, name, nn.Identity())  # sees the whole image
        if isinstance(module, nn.Conv2d):
            weight = module.weight.data.abs() + 1e-3
            module.weight.data = weight / weight.sum((1, 2, 3), keepdim=True)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # of some residual branches it begins at zero
    return net.double().eval()


def averaged(x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    return F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode=ceil_mode)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*TRUNKS, *TIMM} - SEEING_ALL))
def test_the_middle_of_the_gradients_support_is_where_a_cell_is_said_to_lie(name, monkeypatch):
    """In long strips, in which the receptive fields of the deepest cells have room."""
    monkeypatch.setattr(F, "max_pool2d", averaged)
    torch.manual_seed(0)
    if name in TIMM:
        pytest.importorskip("timm")
    trunk, expected = (TRUNKS[name][0](), TRUNKS[name][2]) if name in TRUNKS else (Timm(name), TIMM[name][1])
    trunk = linear(trunk)
    for axis in (0, 1):
        size = (3200, 96) if axis == 0 else (96, 3200)
        image = torch.full((1, 3, *size), 1e-4, dtype=torch.float64, requires_grad=True)  # far from relu6's end
        found = set()
        for features in trunk.maps(image):
            reduction = 2 ** round(math.log2(size[axis] / features.shape[2 + axis]))
            cell = 1600 // reduction
            line = features[0].sum(0).select(1 - axis, features.shape[3 - axis] // 2)
            (gradient,) = torch.autograd.grad(line[cell], image, retain_graph=True)
            support = gradient[0].abs().sum(0).amax(1 - axis).nonzero()[:, 0]
            middle = (support[0] + support[-1]).item() / 2 + 0.5
            found.add((float(reduction), round(middle - reduction * cell, 3)))
        assert found == set(expected)


@pytest.mark.parametrize("name", [*TRUNKS, *TIMM])
def test_diagnose_calls_layers_misplaced_that_are_and_no_others(name):
    torch.manual_seed(0)
    if name in TIMM:
        pytest.importorskip("timm")
    trunk, size = (TRUNKS[name][0](), TRUNKS[name][1]) if name in TRUNKS else (Timm(name), TIMM[name][0])
    net = Deformable(trunk, size, stride=2).eval()
    assert not misplaced(net, size)
    # The offset convolution without its stride, cut to size: a frequent mistake.
    wrong = Deformable(trunk, size, stride=2, offset_stride=1).eval()
    for layer in wrong.layers:
        layer.conv_offset = nn.Sequential(layer.conv_offset, Cut())
    unknown = name in TIMM and not TIMM[name][1]
    assert bool(misplaced(wrong, size)) != unknown


class Cut(nn.Module):
    def forward(self, offset):
        h, w = offset.shape[-2:]
        return offset[..., : -(-h // 2), : -(-w // 2)]

"""Modules that sample with plain operators are explained as the operators are; compiled kernels are named."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from test_kernels import GROUPS, WIDTH
from test_sampler_modules import DAT, Copied, DCNv3
from torch import nn
from torch.utils.checkpoint import checkpoint

import deformscope as ds
from deformscope import DeformscopeError
from deformscope.attribution.faithfulness import faithfulness
from deformscope.errors import DeformscopeWarning


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def one_number(z):
    """A function of each cell by itself."""
    return (z.tanh() * torch.linspace(-1, 2, z.numel()).view_as(z)).sum()


def copied(**settings):
    layer = Copied(**settings)
    nn.init.normal_(layer.p_conv.weight, std=0.2)
    return layer


@pytest.mark.parametrize("settings", [{}, {"modulation": False, "stride": 2}, {"kernel_size": 2}])
def test_the_copied_modules_points_add_what_they_read_through_their_weights(settings):
    layer, x = copied(**settings), torch.randn(1, 4, 9, 12)
    found = ds.explain(layer, x, of=one_number).layer()
    with torch.no_grad():
        z = layer(x)
        weight = layer.conv.weight.flatten(2)  # [out in k]
        mask = None if found.field.modulation is None else found.field.modulation[0, 0]
    slope = torch.autograd.functional.jacobian(one_number, z)[0]
    torch.testing.assert_close(found.by_cell(), (slope * z[0]).sum(dim=0), rtol=0, atol=1e-12)
    padded = nn.functional.pad(x[0], [layer.padding] * 4)
    offset = layer.p_conv(x)[0].detach()
    size, (_, k, h, w) = layer.kernel_size, found.points.shape
    wanted, place = torch.zeros(k, h, w), [0.0, 0.0]
    for n in range(k):
        for row in range(h):
            for column in range(w):
                for axis, (cell, step) in enumerate(((row, n // size), (column, n % size))):
                    moved = 1 + layer.stride * cell + step - size // 2 + offset[n + axis * k, row, column]
                    place[axis] = moved.clamp(0, padded.shape[1 + axis] - 1)
                (y0, x0), read = (int(one.floor()) for one in place), torch.zeros(4)
                for y in (y0, y0 + 1):
                    for column_of in (x0, x0 + 1):
                        share = (1 - (place[0] - y).abs()) * (1 - (place[1] - column_of).abs())
                        if share > 0:
                            read += share * padded[:, y, column_of]
                seen = weight[:, :, n].T @ slope[:, row, column] @ read
                wanted[n, row, column] = seen if mask is None else seen * mask[n, row, column]
    torch.testing.assert_close(found.points[0], wanted, rtol=0, atol=1e-12)


class Operators(nn.Module):
    """A copied module by torchvision's operator, which reads zeros where the other clamps."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        planar, mask = self.layer.p_conv(x), self.layer.m_conv(x).sigmoid()
        offset = planar.unflatten(1, (2, 9)).transpose(1, 2).flatten(1, 2)
        return torchvision.ops.deform_conv2d(x, offset, self.layer.conv.weight, None, 1, 1, 1, mask)


def test_the_copied_module_is_explained_as_torchvisions_operator_is_where_it_does_not_clamp():
    layer, x = copied(), torch.randn(1, 4, 14, 17)
    ours = ds.explain(nn.ModuleDict({"one": layer})["one"], x, of=one_number).layer()
    theirs = ds.explain(Operators(layer), x, of=one_number).layer()
    torch.testing.assert_close(ours.field.offset, theirs.field.offset)
    points = ours.field.sampling_points()[0]
    inside = ((points > 0) & (points < torch.tensor(ours.field.input_size) - 1)).all(-1).all(1)[0]
    assert 0.3 < inside.double().mean() < 1
    for name in ("points", "offset_gradient"):
        mine, other = (getattr(one, name)[:, :, inside] for one in (ours, theirs))
        assert other.abs().max() > 0.01
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("remove_center", [0, 1])
def test_internimages_module_is_explained_in_pytorch_and_named_where_its_kernel_is_compiled(remove_center):
    model, x = nn.Sequential(DCNv3(False, remove_center=remove_center)), torch.randn(1, 9, 12, GROUPS * WIDTH)
    layer, module = ds.explain(model, x, of=one_number).layer(), model[0]
    with torch.no_grad():
        z = model(x)
    slope = torch.autograd.functional.jacobian(one_number, z)
    torch.testing.assert_close(layer.by_cell(), (slope * z)[0].sum(-1), rtol=0, atol=1e-11)
    groups = (slope * z)[0].unflatten(-1, (GROUPS, WIDTH)).sum((0, 1, 3))
    torch.testing.assert_close(layer.points.sum((1, 2, 3)), groups, rtol=0, atol=1e-11)
    if remove_center:
        assert not layer.points[:, 4].any() and not layer.offset_gradient[:, 4].any()
    # Point 1 of 3 × 3 counted by rows (above the middle) is the fourth of those counted by columns.
    row, column, group, step = 2, 3, 1, 1e-6
    channel = (group * (9 - remove_center) + 3) * 2 + 1
    values = []
    for sign in (1, -1):
        change = torch.zeros_like(module.offset(x[:, ::2, ::2]))
        change[0, row, column, channel] = sign * step / module.offset_scale
        handle = module.offset.register_forward_hook(lambda _, args, output, change=change: output + change)
        values.append(one_number(model(x)).item())
        handle.remove()
    wanted = (values[0] - values[1]) / (2 * step)
    assert layer.offset_gradient[group, 1, row, column, 0].item() == pytest.approx(wanted, abs=1e-7)
    assert abs(wanted) > 1e-4


def test_a_compiled_kernel_is_named_with_its_reason_and_never_denied():
    model = nn.ModuleDict({"dcn": DCNv3(True), "op": copied()})
    x = torch.randn(1, 9, 12, GROUPS * WIDTH)

    def run(x):
        return model["dcn"](x.movedim(1, -1)).movedim(-1, 1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["op"](run(x)[:, :4])

    why = ds.explain(Net(), x.movedim(-1, 1), of=one_number)
    assert list(why.layers) == ["parts.op"]
    assert list(why.unexplained) == ["parts.dcn"]
    with pytest.raises(DeformscopeError, match=r"layer='parts.dcn'.*not explained: parts.dcn \(its kernel gives no"):
        why.layer("parts.dcn")
    alone = ds.explain(Net(), x.movedim(-1, 1), of=lambda z: z.sum() * 0)
    with pytest.raises(DeformscopeError, match=r"no explained deformable.*; captured, but not explained: parts.dcn"):
        alone.layer()
    with pytest.raises(DeformscopeError, match=r"layers=\['parts.dcn'\]: captured, but not explained: parts.dcn"):
        ds.explain(Net(), x.movedim(-1, 1), of=one_number, layers=["parts.dcn"])


def test_dats_points_add_what_the_keys_and_values_read():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.dat = DAT()

        def forward(self, x):
            self.dat(x)
            return self.dat.read

    model, x = Attends(), torch.randn(1, 4, 11, 15)
    found = ds.explain(model, x, of=one_number).layer()
    read = model(x).detach()
    slope = torch.autograd.functional.jacobian(one_number, read)
    torch.testing.assert_close(found.points[:, 0], (slope * read).sum(dim=1), rtol=0, atol=1e-12)
    grid = torch.zeros(2, *found.points.shape[2:], 2).requires_grad_()
    places = found.field.sampling_points()[0, :, 0].double() + grid
    size = torch.tensor(found.field.input_size)
    again = nn.functional.grid_sample(x.view(2, 2, 11, 15), (places / (size - 1) * 2 - 1).flip(-1), align_corners=True)
    (wanted,) = torch.autograd.grad(one_number(again), grid)
    torch.testing.assert_close(found.offset_gradient[:, 0], wanted, rtol=1e-3, atol=1e-4)


def test_two_calls_of_a_module_have_their_own_attributions():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.back = copied(), nn.Conv2d(5, 4, 1)

        def forward(self, x):
            return self.one(self.back(self.one(x)))

    why = ds.explain(Twice(), torch.randn(1, 4, 8, 9), of=one_number)
    assert list(why.layers) == ["one", "one#2"]
    assert not torch.allclose(why.layers["one"].points, why.layers["one#2"].points)


def test_a_test_by_deletion_of_points_that_cannot_be_switched_off_is_refused():
    why = ds.explain(copied(), torch.randn(1, 4, 8, 9), of=one_number)
    detection = {"boxes": torch.ones(1, 4), "index": torch.zeros(1)}
    with pytest.raises(DeformscopeError, match=r"layer='Copied': its module calls no deformable operator"):
        faithfulness(None, replace(why, photo=np.zeros((8, 9, 3), np.uint8), detection=detection))


def test_samplers_that_capture_does_not_understand_are_named_in_a_warning():
    class Arbitrary(Copied):
        num_param = 9

    with pytest.warns(DeformscopeWarning, match="not understood: .*num_param"):
        why = ds.explain(Arbitrary(), torch.randn(1, 4, 8, 9), of=one_number)
    assert not why.layers


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("operator", [True, False])
@pytest.mark.parametrize("of_layer", [True, False])
def test_gradient_checkpointing_gives_the_same_attributions_or_is_refused_in_one_line(reentrant, operator, of_layer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layer = nn.Conv2d(4, 4, 1), Operators(copied()) if operator else copied()
            self.recomputed = None

        def run(self, part, x):
            return checkpoint(part, x, use_reentrant=reentrant) if part is self.recomputed else part(x)

        def forward(self, x):
            return self.run(self.layer, self.run(self.stem, x))

    net, x = Net(), torch.randn(1, 4, 8, 9)
    expected = ds.explain(net, x, of=one_number).layer().points
    net.recomputed = net.layer if of_layer else net.stem
    if reentrant or (operator and of_layer):
        with pytest.raises(DeformscopeError, match=r"model Net: .*\(gradient checkpointing\).* switch it off") as said:
            ds.explain(net, x, of=one_number)
        assert "\n" not in str(said.value)
    else:
        torch.testing.assert_close(ds.explain(net, x, of=one_number).layer().points, expected)


def test_in_training_mode_statistics_modes_and_random_numbers_stay_as_they_are():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.3), copied())
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ds.explain(model, torch.randn(1, 4, 8, 9, generator=torch.Generator().manual_seed(1)), of=one_number)
    assert torch.equal(torch.rand(3), expected)
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_layer_without_modulation_has_none_in_its_explanation():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.offset, self.deform = nn.Conv2d(4, 18, 3, 1, 1), torchvision.ops.DeformConv2d(4, 5, 3, padding=1)

        def forward(self, x):
            return self.deform(x, self.offset(x))

    field = ds.explain(Plain(), torch.randn(1, 4, 8, 9), of=one_number).layer().field
    assert field.modulation is None and "modulated" not in repr(field)

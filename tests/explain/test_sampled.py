"""Samplers that are modules of plain operators: explained by what their points read."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import deformscope as ds

sys.path.insert(0, str(Path(__file__).parents[1] / "recording"))
from test_sampler_modules import DAT, Copied, DCNv3


class Theirs(nn.Module):
    """The same layer by torchvision's operator, with the offsets in its order."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        offset = self.layer.p_conv(x).unflatten(1, (2, 9)).transpose(1, 2).flatten(1, 2)
        mask = self.layer.m_conv(x).sigmoid() if hasattr(self.layer, "m_conv") else None
        return torchvision.ops.deform_conv2d(x, offset, self.layer.conv.weight, padding=1, mask=mask)


class Named(nn.Module):
    """A layer with a name."""

    def __init__(self, **layer):
        super().__init__()
        (self.name,) = layer
        self.add_module(self.name, layer[self.name])

    def forward(self, x):
        return self.get_submodule(self.name)(x)


@pytest.mark.parametrize("modulation", [True, False])
def test_the_copied_module_is_explained_as_torchvisions_operator(modulation):
    torch.manual_seed(0)
    layer, x = Copied(modulation=modulation), torch.randn(1, 4, 13, 16)
    nn.init.normal_(layer.p_conv.weight, std=0.1)
    model, theirs = nn.Sequential(nn.Identity(), layer), nn.Sequential(nn.Identity(), Theirs(layer))

    def of(out):
        return out[0, 2, 5:8, 6:10].sum()

    why, expected = ds.explain(model, x, of=of).layer(), ds.explain(theirs, x, of=of).layer()
    torch.testing.assert_close(why.points, expected.points, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(why.offset_gradient, expected.offset_gradient, atol=1e-5, rtol=1e-4)
    assert why.total == pytest.approx(of(model(x)).item(), rel=1e-4)


@pytest.mark.parametrize("remove_center", [0, 1])
def test_internimages_module_is_explained_by_the_values_that_it_reads(remove_center):
    torch.manual_seed(0)
    layer = DCNv3(compiled=False, remove_center=remove_center)
    nn.init.normal_(layer.offset.weight, std=0.2)
    x = torch.randn(1, 9, 12, layer.dw_conv.in_channels)
    model = Named(dcn=layer)
    why = ds.explain(model, x, of=lambda out: out[0, 2, 3].sum()).layer("dcn")
    assert why.total == pytest.approx(layer(x)[0, 2, 3].sum().item(), rel=1e-4)
    assert why.strongest_cell() == (2, 3)
    layer(x)[0, 2, 3].sum().backward()
    moved = why.offset_gradient.sum((2, 3)) * layer.offset_scale  # [g k yx], row by row
    kept = [k for k in range(9) if k != 4 or not remove_center]
    by_column = moved.view(-1, 3, 3, 2).transpose(1, 2).flatten(1, 2)[:, kept].flip(-1)
    torch.testing.assert_close(by_column.flatten(), layer.offset.bias.grad, atol=1e-5, rtol=1e-4)
    assert not remove_center or not why.points[:, 4].any()


def test_dat_is_explained_by_what_it_reads_and_not_by_its_table():
    torch.manual_seed(0)
    layer, x = DAT(), torch.randn(1, 4, 11, 15)
    model = Named(dat=layer)
    why = ds.explain(model, x, of=lambda out: layer.read[1, :, 2, 3].sum()).layer("dat")
    assert why.points.shape[:2] == (2, 1) and why.strongest_cell() == (2, 3)
    assert why.total == pytest.approx(layer.read[1, :, 2, 3].sum().item(), rel=1e-4)
    assert why.offset_gradient[1, 0, 2, 3].abs().min() > 0


def test_kernels_that_gradients_do_not_pass_are_named():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.dcn = DCNv3(compiled=True)

        def forward(self, x):
            self.dcn(x)
            return x * 2

    why = ds.explain(model := Beside(), torch.randn(1, 9, 12, model.dcn.dw_conv.in_channels), of=lambda out: out.sum())
    assert why.unexplained == ("dcn",)
    with pytest.raises(ds.DeformscopeError, match=r"captured, but not explained, since gradients .* kernels: 'dcn'"):
        why.layer()


def deformable(*around):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), *around, Copied())


def test_a_model_in_train_mode_keeps_its_statistics_and_the_random_state():
    model, x = deformable(nn.BatchNorm2d(4), nn.Dropout(0.5)).train(), torch.randn(1, 3, 20, 22)
    before, state = model[1].running_mean.clone(), torch.random.get_rng_state()
    why = ds.explain(model, x, of=lambda out: out[0, 1, 4, 4])
    assert torch.equal(model[1].running_mean, before) and torch.equal(torch.random.get_rng_state(), state)
    assert model.training and list(why.reached) == ["3"]


class Checkpointed(nn.Module):
    def __init__(self, body, reentrant):
        super().__init__()
        self.body, self.reentrant = body, reentrant

    def forward(self, x):
        return checkpoint(self.body, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("theirs", [False, True])
def test_gradient_checkpointing_is_right_or_refused_in_one_line(theirs, reentrant):
    body, x = deformable(), torch.randn(1, 3, 20, 22)
    if theirs:
        body[1] = Theirs(body[1])
    expected = ds.explain(body, x, of=lambda out: out[0, 1, 4, 4]).layer().points
    refused = pytest.raises(ds.DeformscopeError, match=r"gradient checkpointing.*gradient_checkpointing_disable\(\)")
    with refused if theirs or reentrant else nullcontext():
        why = ds.explain(Checkpointed(body, reentrant), x, of=lambda out: out[0, 1, 4, 4])
        torch.testing.assert_close(why.layer().points, expected)

"""Attributions are exact: they sum to ⟨∂y/∂z, z⟩, and each is what a point's value adds, by finite differences."""

from functools import partial

import pytest
import torch
import torchvision
from deform_conv_literal import Case, deform_conv2d_literal
from known_network import Known, one_output
from torch import nn

import deformscope as ds
from deformscope.ops import deform_conv2d

OPERATORS = {
    "torchvision": torchvision.ops.deform_conv2d,
    "ours": partial(deform_conv2d, impl="embedding_bag"),
    "ours by torchvision": partial(deform_conv2d, impl="torchvision"),
}
IMAGE = torch.rand(1, 3, 15, 19, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def explained(net):
    return ds.explain(net, IMAGE, of=one_output)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("geometry", [{}, {"stride": (2, 2)}, {"dilation": (2, 2)}, {"stride": (1, 2)}])
def test_they_sum_to_what_the_output_would_lose_without_the_layer(operator, modulated, groups, geometry):
    net = Known(OPERATORS[operator], modulated, groups, **geometry)
    why = explained(net)
    y = one_output(net(IMAGE))
    (slope,) = torch.autograd.grad(y, net.z)
    wanted = slope * (net.z - net.bias[:, None, None])
    (layer,) = why.layers.values()
    assert why.value == pytest.approx(y.item(), abs=1e-12)
    assert abs(layer.total - wanted.sum().item()) < 1e-10
    torch.testing.assert_close(layer.by_cell(), wanted[0].sum(dim=0), rtol=0, atol=1e-10)
    assert layer.points.shape == (groups, 6, *net.z.shape[2:])
    assert abs(layer.total) > 1e-3
    torch.testing.assert_close(layer.by_point().sum(), layer.points.sum())


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("modulated", [False, True])
def test_each_is_what_scaling_its_points_value_changes(operator, modulated):
    net = Known(OPERATORS[operator], modulated)
    (layer,) = explained(net).layers.values()
    with torch.no_grad():
        net(IMAGE)
        n, _, h, w = net.offset.shape
        mask = net.mask if modulated else torch.ones(n, 12, h, w, dtype=torch.float64)
        case = Case(net.x, net.offset, net.weight, net.bias, **net.geometry, mask=mask)

        def y(offset=net.offset, mask=mask):
            literal = deform_conv2d_literal(Case(**vars(case) | {"offset": offset, "mask": mask}))
            return one_output(net.after(literal)).item()

        step = 1e-5
        for group, k, row, column in [(0, 0, 0, 0), (1, 5, h // 2, w // 2), (0, 4, h // 2, w // 2), (1, 2, 1, w - 1)]:
            place, values = (0, group * 6 + k, row, column), []
            for sign in (1, -1):
                scaled = mask.clone()
                scaled[place] *= 1 + sign * step
                values.append(y(mask=scaled))
            slope = (values[0] - values[1]) / (2 * step)
            assert layer.points[group, k, row, column].item() == pytest.approx(slope, abs=1e-8)
            for axis in (0, 1):
                values = []
                for sign in (1, -1):
                    moved = net.offset.clone()
                    moved[0, 2 * place[1] + axis, row, column] += sign * step
                    values.append(y(offset=moved))
                slope = (values[0] - values[1]) / (2 * step)
                assert layer.offset_gradient[group, k, row, column, axis].item() == pytest.approx(slope, abs=1e-8)


def test_stacked_layers_are_explained_in_one_pass():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.lower, self.upper = Known(deform_conv2d, groups=1), Known(torchvision.ops.deform_conv2d, groups=2)

        def forward(self, images):
            maps = self.lower(images)
            return self.upper(maps[:, :3])

    net = Stack()
    why = explained(net)
    assert list(why.layers) == ["lower", "upper"]
    y = one_output(net(IMAGE))
    for name, module in net.named_children():
        (slope,) = torch.autograd.grad(y, module.z, retain_graph=True)
        wanted = (slope * (module.z - module.bias[:, None, None])).sum().item()
        assert abs(why.layers[name].total - wanted) < 1e-10
        assert why.layers[name].field.name == name
    assert list(ds.explain(net, IMAGE, of=one_output, layers=["upper"]).layers) == ["upper"]


def test_layers_that_do_not_matter_have_zeros():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.beside = Known(deform_conv2d), Known(deform_conv2d)

        def forward(self, images):
            return self.used(images), self.beside(images)

    why = ds.explain(Beside(), IMAGE, of=lambda outputs: one_output(outputs[0]))
    assert list(why.layers) == ["used", "beside"]
    assert list(why.reached) == ["used"]
    assert not why.layers["beside"].points.any()
    assert not why.layers["beside"].offset_gradient.any()
    assert why.layer() is why.layers["used"]


def test_points_lie_where_the_field_says():
    (layer,) = explained(Known(deform_conv2d)).layers.values()
    places = layer.places()
    assert places.shape == (*layer.points.shape, 2)
    torch.testing.assert_close(places, layer.field.to_pixels(layer.field.sampling_points())[0])


def test_the_model_stays_as_it_was():
    net = Known(deform_conv2d).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode():
        why = explained(net)
    assert not why.layer().points.is_inference()
    assert net.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.is_inference_mode_enabled()

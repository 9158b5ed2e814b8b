"""Compiled samplers, simulated: what capture says is sampled gives, sampled by hand, what the kernel has put out."""

import math

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.autograd import Function

from deformscope import NoDeformableCall, capture
from deformscope.errors import DeformscopeWarning

GROUPS, WIDTH = 2, 3
"""Of the channels-last kernels: groups, and channels of each."""


def bilinear(image, y, x):
    """The value of ``image`` [h w c] at (y, x), cells counted from 0, zero outside."""
    out = np.zeros(image.shape[-1])
    for row, part in ((math.floor(y), 1 - y + math.floor(y)), (math.floor(y) + 1, y - math.floor(y))):
        for column, share in ((math.floor(x), 1 - x + math.floor(x)), (math.floor(x) + 1, x - math.floor(x))):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                out += part * share * image[row, column]
    return out


def scaled_kernel(image, offsets, masks, geometry):
    """DCNv3 and DCNv4 as in their CUDA code, in float64 and out of PyTorch's sight; offsets(n, y, x, g) is [p, xy]."""
    kh, kw, sh, sw, ph, pw, dh, dw, groups, width, scale, centre_out = geometry
    image = image.detach().double().numpy()
    n, h, w, _ = image.shape
    rows, columns = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    out = np.zeros((n, rows, columns, groups * width))
    for number, row, column, group in np.ndindex(n, rows, columns, groups):
        x0 = ((dw * (kw - 1)) >> 1) - pw + column * sw - ((dw * (kw - 1)) >> 1) * scale
        y0 = ((dh * (kh - 1)) >> 1) - ph + row * sh - ((dh * (kh - 1)) >> 1) * scale
        places, weights, point = offsets(number, row, column, group), masks(number, row, column, group), 0
        channels = slice(group * width, (group + 1) * width)
        for i in range(kw):
            for j in range(kh):
                if i != kw // 2 or j != kh // 2 or not centre_out:
                    x, y = x0 + (i * dw + places[point, 0]) * scale, y0 + (j * dh + places[point, 1]) * scale
                    out[number, row, column, channels] += weights[point] * bilinear(image[number, ..., channels], y, x)
                    point += 1
    return torch.from_numpy(out)


class DCNv3Function(Function):
    @staticmethod
    def forward(
        ctx, input, offset, mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
        group, group_channels, offset_scale, im2col_step, remove_center,
    ):  # fmt: skip
        points = kernel_h * kernel_w - remove_center
        places = offset.detach().double().numpy().reshape(*offset.shape[:3], group, points, 2)
        weights = mask.detach().double().numpy().reshape(*mask.shape[:3], group, points)
        geometry = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        geometry += (group, group_channels, offset_scale, remove_center)
        return scaled_kernel(input, lambda *at: places[at], lambda *at: weights[at], geometry).to(input)

    @staticmethod
    def backward(ctx, gradient):
        return (None,) * 16


class DCNv4Function(Function):
    @staticmethod
    def forward(
        ctx, input, offset_mask, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
        group, group_channels, offset_scale, im2col_step, remove_center,
    ):  # fmt: skip
        points = kernel_h * kernel_w - remove_center
        both = offset_mask.detach().double().numpy()

        def places(number, row, column, group):
            start = group * points * 3
            return both[number, row, column, start : start + 2 * points].reshape(points, 2)

        def weights(number, row, column, group):
            start = group * points * 3 + 2 * points
            return both[number, row, column, start : start + points]

        geometry = (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
        geometry += (group, group_channels, offset_scale, remove_center)
        return scaled_kernel(input, places, weights, geometry).to(input)

    @staticmethod
    def backward(ctx, gradient):
        return (None,) * 15


KEPT = DCNv3Function.apply, DCNv4Function.apply
"""As modules keep them from their import on."""


class ChannelsLast(nn.Module):
    """A layer of channels-last maps that are made by a convolution."""

    def __init__(self, version, geometry, scale, remove_center):
        super().__init__()
        self.stem, self.version = nn.Conv2d(3, GROUPS * WIDTH, 3, 2, 1), version
        self.geometry, self.scale, self.remove_center = geometry, scale, remove_center
        self.points = geometry[0] * geometry[1] - remove_center
        self.offset = nn.Linear(GROUPS * WIDTH, GROUPS * self.points * 2)
        self.mask = nn.Linear(GROUPS * WIDTH, GROUPS * self.points)
        self.offset_mask = nn.Linear(GROUPS * WIDTH, math.ceil(GROUPS * self.points * 3 / 8) * 8)
        nn.init.normal_(self.offset_mask.weight)

    def forward(self, images):
        self.map = x = self.stem(images).permute(0, 2, 3, 1)
        kh, kw, sh, sw, ph, pw, dh, dw = self.geometry
        rows, columns = (
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                x.shape[1:3], (ph, pw), (dh, dw), (kh, kw), (sh, sw), strict=True
            )
        )
        rest = (*self.geometry, GROUPS, WIDTH, self.scale, 256, self.remove_center)
        around = nn.functional.interpolate(x.permute(0, 3, 1, 2), (rows, columns)).permute(0, 2, 3, 1)
        if self.version == 4:
            return KEPT[1](x, self.offset_mask(around), *rest)
        mask = self.mask(around).unflatten(-1, (GROUPS, -1)).softmax(-1).flatten(-2)
        return KEPT[0](x, self.offset(around) * 2, mask, *rest)


def by_hand(field, image):
    """Sum the values of ``image`` [n h w c] at a field's points, each times its modulation: [n h w c]."""
    points, weights = field.sampling_points().double().numpy(), field.modulation.double().numpy()
    image = image.detach().double().numpy()
    n, groups, k, h, w, _ = points.shape
    out = np.zeros((n, h, w, image.shape[-1]))
    width = image.shape[-1] // groups
    for number, group, point, row, column in np.ndindex(n, groups, k, h, w):
        channels = slice(group * width, (group + 1) * width)
        value = bilinear(image[number, ..., channels], *points[number, group, point, row, column])
        out[number, row, column, channels] += weights[number, group, point, row, column] * value
    return torch.from_numpy(out)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    ("geometry", "scale", "remove_center"),
    [
        ((3, 2, 2, 1, 1, 2, 1, 2), 1.0, 0),
        ((2, 3, 1, 2, 2, 1, 2, 1), 0.6, 0),
        ((3, 3, 1, 2, 1, 1, 1, 1), 2.0, 1),
    ],
)
@pytest.mark.parametrize("version", [3, 4])
def test_dcnv3_and_dcnv4_sample_where_their_fields_say(version, geometry, scale, remove_center, context):
    torch.manual_seed(0)
    layer = ChannelsLast(version, geometry, scale, remove_center)
    for _ in range(2):  # the second pass is recognized
        with context(), capture(layer) as fields:
            out = layer(torch.randn(2, 3, 9, 12))
        (field,) = fields.values()
        assert field.name == "ChannelsLast" and field.cells.reduction == (2, 2)
        assert field.kernel_size == geometry[:2] and field.input_size == (5, 6)
        torch.testing.assert_close(by_hand(field, layer.map), out.detach().double(), atol=2e-5, rtol=1e-5)
    assert (field.modulation.min() < 0) == (version == 4)  # DCNv4's are unbounded
    if remove_center:
        assert field.absent == (4,)
        others = [k for k in range(9) if k != 4]
        assert not field.modulation[:, :, 4].any()
        torch.testing.assert_close(field.offset[:, :, 4], field.offset[:, :, others].mean(dim=2))
    assert not isinstance(DCNv3Function.forward, staticmethod) and "told" not in DCNv3Function.forward.__code__.co_name


def test_functions_have_their_own_forward_after_the_block_also_when_it_raises():
    own = DCNv3Function.__dict__["forward"], DCNv4Function.__dict__["forward"]
    with pytest.raises(RuntimeError, match="mine"), capture(nn.Identity()):
        assert DCNv3Function.__dict__["forward"] is not own[0]
        with pytest.raises(NoDeformableCall), capture(nn.Identity()):
            pass
        assert DCNv3Function.__dict__["forward"] is not own[0]
        raise RuntimeError("mine")
    assert (DCNv3Function.__dict__["forward"], DCNv4Function.__dict__["forward"]) == own


class DeformConv2dFunction(Function):
    """mmcv's arguments; computed by torchvision's operator, as Detectron2 does on a CPU, or out of sight."""

    inner = False

    @staticmethod
    def forward(
        ctx, input, offset, weight, stride=1, padding=0, dilation=1, groups=1, deform_groups=1, bias=False,
        im2col_step=32,
    ):  # fmt: skip
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        if DeformConv2dFunction.inner:
            return torchvision.ops.deform_conv2d(input, offset, weight, **geometry)
        return torch.from_numpy(torch.nn.functional.conv2d(input, weight, **geometry).numpy().copy())


class _ModulatedDeformConv(Function):
    """Detectron2's arguments."""

    @staticmethod
    def forward(
        ctx, input, offset, mask, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, deformable_groups=1
    ):
        return torch.from_numpy(torch.nn.functional.conv2d(input, weight, bias, stride, padding, dilation).numpy())


plain, modulated = DeformConv2dFunction.apply, _ModulatedDeformConv.apply


class Compiled(nn.Module):
    """Two layers in a row; the upper one is modulated."""

    def __init__(self):
        super().__init__()
        self.conv_offset = nn.Conv2d(4, 2 * 2 * 6, (3, 2), (2, 1), (1, 2), (1, 2))
        self.weight, self.top = nn.Parameter(torch.randn(4, 4, 3, 2)), nn.Parameter(torch.randn(4, 4, 3, 3))

    def forward(self, x):
        self.offset = self.conv_offset(x)
        y = plain(x, self.offset, self.weight, (2, 1), (1, 2), (1, 2), 1, 2)
        self.upper, self.mask = torch.randn(len(y), 18, *y.shape[-2:]), torch.rand(len(y), 9, *y.shape[-2:])
        return modulated(y.relu(), self.upper, self.mask, self.top, None, 1, 1, 1, 1, 1)


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad])
def test_compiled_dcn_and_dcnv2_are_read_in_torchvisions_order_and_once(inner, context, monkeypatch):
    monkeypatch.setattr(DeformConv2dFunction, "inner", inner)
    model = Compiled()
    for _ in range(2):
        with context(), capture(model) as fields:
            model(torch.randn(2, 4, 9, 12))
        lower, upper = fields.values()
        n, _, h, w = model.offset.shape
        torch.testing.assert_close(lower.offset, model.offset.view(n, 2, 6, 2, h, w).movedim(3, -1))
        assert (lower.kernel_size, lower.stride, lower.padding, lower.dilation) == ((3, 2), (2, 1), (1, 2), (1, 2))
        assert lower.source.convolutions == ("conv_offset",) and lower.source.misalignment == (0, 0)
        assert lower.modulation is None and lower.below == ""
        n, _, h, w = model.upper.shape
        torch.testing.assert_close(upper.offset, model.upper.view(n, 1, 9, 2, h, w).movedim(3, -1))
        torch.testing.assert_close(upper.modulation, model.mask.view(n, 1, 9, h, w))
        assert upper.cells == lower.output_cells and upper.below == lower.name


@pytest.fixture(scope="module")
def tvdcn():
    """tvdcn's operators, as its version 1.1 defines them."""
    library = torch.library.Library("tvdcn", "FRAGMENT")
    rest = "Tensor? offset=None, Tensor? mask=None, Tensor? bias=None, "
    for size in (2, 3):
        lists = "".join(f"SymInt[{size}] {name}, " for name in ("stride=1", "padding=0", "dilation=1"))
        library.define(f"deform_conv{size}d(Tensor input, Tensor weight, {rest}{lists}SymInt groups=1) -> Tensor")

        def run(input, weight, offset=None, mask=None, bias=None, stride=1, padding=0, dilation=1, groups=1, size=size):
            convolve = getattr(torch.nn.functional, f"conv{size}d")
            return convolve(input, weight, bias, stride, padding, dilation, groups)

        library.impl(f"deform_conv{size}d", run, "CompositeExplicitAutograd")
    yield torch.ops.tvdcn
    library._destroy()


def test_the_operators_of_tvdcn_have_their_own_order_of_arguments(tvdcn):
    class Layer(nn.Module):
        def forward(self, x):
            weight = torch.randn(4, 4, 3, 2)
            plain = tvdcn.deform_conv2d(x, weight, padding=[1, 2])
            self.offset, self.mask = torch.randn(2, 4 * 6, 5, 11), torch.rand(2, 6, 5, 11)
            tvdcn.deform_conv2d(x, weight, self.offset, self.mask, None, [2, 1], [1, 2], [1, 2], 1)
            self.one, self.both = torch.randn(2, 12, *plain.shape[-2:]), torch.rand(2, 12, *plain.shape[-2:])
            tvdcn.deform_conv2d(x, weight, self.one, self.both, padding=[1, 2])
            return tvdcn.deform_conv2d(x, weight, self.one, padding=[1, 2])

    layer = Layer()
    with capture(nn.ModuleDict({"a": layer})) as fields:
        layer(torch.randn(2, 4, 9, 9))
    assert list(fields) == ["a", "a#2", "a#3"]  # and nothing of the call without offsets
    first, second, third = fields.values()
    torch.testing.assert_close(first.offset, layer.offset.view(2, 2, 6, 2, 5, 11).movedim(3, -1))
    torch.testing.assert_close(first.modulation, layer.mask.view(2, 1, 6, 5, 11).expand(-1, 2, -1, -1, -1))
    assert (first.stride, first.padding, first.dilation) == ((2, 1), (1, 2), (1, 2))
    assert second.offset.shape[1] == 2 and torch.equal(second.offset[:, 0], second.offset[:, 1])
    torch.testing.assert_close(second.modulation, layer.both.view(2, 2, 6, *layer.both.shape[-2:]))
    assert third.modulation is None and third.offset.shape[1] == 1


def test_operators_in_three_dimensions_are_named_and_not_recorded(tvdcn):
    class Volume(nn.Module):
        def forward(self, x):
            return tvdcn.deform_conv3d(x, torch.randn(2, 2, 1, 1, 1), torch.randn(1, 3, 3, 4, 5))

    model = Volume()
    with (
        pytest.raises(
            NoDeformableCall, match=r"not understood: tvdcn::deform_conv3d in Volume: an operator that is not known"
        ),
        capture(model),
    ):
        model(torch.randn(1, 2, 3, 4, 5))


class OtherFunction(Function):
    """An unknown sampler, and what only has an argument of that name."""

    @staticmethod
    def forward(ctx, input, offset, strength=1.0):
        return input * strength


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1, 3, 4, 5, 6), "OtherFunction in 1: it samples in 3 dimensions"),
        ((1, 2, 4, 5), "OtherFunction in 1: its arguments are those of no known deformable convolution"),
        ((4,), None),
    ],
)
def test_unknown_functions_are_named_where_they_get_maps_of_offsets(shape, why):
    class Layer(nn.Module):
        def forward(self, x):
            return OtherFunction.apply(x, torch.randn(shape))

    model = nn.Sequential(Compiled(), Layer())
    x = torch.randn(2, 4, 9, 12)
    if why is None:
        with capture(model) as fields:
            model(x)
    else:
        with pytest.warns(DeformscopeWarning, match=why), capture(model) as fields:
            model(x)
    assert list(fields) == ["0", "0#2"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("implementation", ["auto", "embedding_bag", "torchvision"])
def test_the_function_within_deformscopes_own_operator_is_a_part_of_it(implementation, monkeypatch):
    from deformscope.ops import deform_conv2d

    class Own(nn.Module):
        def forward(self, x):
            return deform_conv2d(x, torch.zeros(1, 18, 9, 12), torch.ones(4, 4, 3, 3), padding=1, impl=implementation)

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Own())
    with capture(model) as fields:
        model(torch.rand(1, 3, 9, 12))
    assert list(fields) == ["1"]

"""The traced place of a cell is the middle of its receptive field, measured by the gradient of real networks."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import deformscope as ds
from deformscope import capture


class Probe(nn.Module):
    """A deformable convolution with zero offsets and kernel 1, that marks a place in a network."""

    def forward(self, x):
        self.seen = x
        offset = torch.zeros(len(x), 2, *x.shape[-2:])
        return torchvision.ops.deform_conv2d(x, offset, torch.eye(x.shape[1])[:, :, None, None])


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def conv(channels, kernel, stride=1, padding=0, dilation=1):
    layer = nn.Conv2d(channels, 4, kernel, stride, padding, dilation, bias=False)
    nn.init.ones_(layer.weight)
    return layer


def up_conv(kernel, stride, padding):
    layer = nn.ConvTranspose2d(4, 4, kernel, stride, padding, bias=False)
    nn.init.ones_(layer.weight)
    return layer


BODIES = {
    "strided and dilated": [conv(3, (3, 5), (2, 1), (1, 2)), conv(4, 3, 2, 2, 2)],
    "even kernels without padding": [conv(3, 4, 4), conv(4, 2, 2)],
    "pooled": [conv(3, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((2, 3), (2, 1), (0, 1))],
    "padded by itself": [nn.ZeroPad2d((3, 0, 1, 2)), conv(3, 3, 1)],
    "mirrored at the border": [conv(3, 3, 2, 1), nn.ReflectionPad2d((2, 1, 3, 0)), conv(4, 3)],
    "resized": [conv(3, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)],
    "resized by corners": [
        conv(3, 3, 4, 1),
        Function(lambda x: F.interpolate(x, (23, 28), mode="bilinear", align_corners=True)),
    ],
    "transposed": [conv(3, 3, 2, 1), up_conv((4, 2), 2, (1, 0))],
    "sliced": [conv(3, 3, 1, 1), Function(lambda x: x[:, :, 3::2, 5:-4] + 0)],
    "flipped": [conv(3, 3, 2, 1), Function(lambda x: x.flip(-1) * 2)],
    "through a sum and a concatenation": [
        conv(3, 3, 2, 1),
        Function(lambda x: torch.cat([x + x.relu(), x], 1)[:, :4]),
    ],
}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("name", BODIES)
def test_a_cell_lies_in_the_middle_of_its_receptive_field(name, context):
    probe = Probe()
    net = nn.Sequential(*BODIES[name], probe)
    image = torch.ones(1, 3, 48, 61)
    with context(), capture(net) as fields:
        net(image)
    (field,) = fields.values()
    for share in ((0.4, 0.5), (0.6, 0.45)):
        image.requires_grad_(True)
        net(image)
        h, w = probe.seen.shape[-2:]
        cell = int(share[0] * h), int(share[1] * w)
        # Two by two cells: a transposed convolution's own lie a little to either side of the straight grid.
        block = probe.seen[0, :, cell[0] : cell[0] + 2, cell[1] : cell[1] + 2].sum()
        weight = torch.autograd.grad(block, image)[0][0].sum(0)
        for axis in (0, 1):
            profile = weight.sum(dim=1 - axis)
            middle = (profile * (torch.arange(len(profile)) + 0.5)).sum() / profile.sum()
            traced = field.cells.origin[axis] + field.cells.reduction[axis] * (cell[axis] + 0.5)
            assert traced == pytest.approx(middle.item(), abs=1e-3)


@pytest.mark.parametrize("size", [(225, 301), (64, 97), (32, 32)])
def test_a_resnet_on_odd_sizes_has_cells_at_whole_multiples_of_its_strides(size):
    net = torchvision.models.resnet18(weights=None).eval()
    net.layer2.append(Probe())
    net.layer4.append(Probe())
    with capture(net) as fields:
        net(torch.rand(1, 3, *size))
    assert [(f.cells.reduction, f.cells.origin) for f in fields.values()] == [
        ((8.0, 8.0), (0.5, 0.5)),
        ((32.0, 32.0), (0.5, 0.5)),
    ]


def test_where_the_trail_breaks_places_are_unknown_and_the_operator_is_named():
    tokens = Function(lambda x: x.flatten(2).sort(dim=-1).values.unflatten(-1, (12, 10)).contiguous())
    net = nn.Sequential(conv(3, 4, 4), tokens, Probe())
    with capture(net) as fields:
        net(torch.rand(1, 3, 48, 40))
    (field,) = fields.values()
    assert field.cells is None and field.unplaced == "aten::sort in 1"
    with pytest.raises(ds.DeformscopeError, match="aten::sort in 1"):
        field.cell_at((1, 1))


def test_offsets_planted_in_a_running_network_land_on_their_pixel():
    """From the photo through torchvision's resize and padding, a strided trunk and a strided deformable convolution."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Planted(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = GeneralizedRCNNTransform(96, 160, [0.0] * 3, [1.0] * 3)
            self.trunk = nn.Sequential(conv(3, 3, 2, 1), conv(4, 3, 2, 1))

        def forward(self, images, targets):
            batch = self.transform(images)[0]
            x = self.trunk(batch.tensors)
            h, w = ((size + 2 - 3) // 2 + 1 for size in x.shape[-2:])
            offset = torch.zeros(len(images), 9, 2, h, w)
            for i, (image, resized) in enumerate(zip(images, batch.image_sizes, strict=True)):
                for axis in (0, 1):
                    # Receptive fields of this trunk are centred on network px 4·cell (+ half a px).
                    px = targets[i][axis] * resized[axis] / image.shape[1 + axis]
                    goal = (px - 0.5) / 4
                    place = torch.arange((h, w)[axis]) * 2.0 - 1
                    for k in range(9):
                        line = goal - (place + (k // 3, k % 3)[axis])
                        offset[i, k, axis] = line[:, None] if axis == 0 else line
            return torchvision.ops.deform_conv2d(x, offset.flatten(1, 2), torch.ones(1, 4, 3, 3), stride=2, padding=1)

    net, targets = Planted().eval(), [(50.5, 12.5), (3.5, 120.5)]
    with capture(net) as fields:
        net([torch.rand(3, 150, 100), torch.rand(3, 77, 131)], targets)
    (field,) = fields.values()
    for i, target in enumerate(targets):
        landed = field.to_pixels(field.sampling_points()[i], image=i)
        assert (landed - torch.tensor(target)).abs().max() < 0.01

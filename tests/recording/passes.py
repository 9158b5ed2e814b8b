"""What tests of recognized passes share: a network with deformable layers, and whether its pass was traced."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from deformscope import capture
from deformscope.ops import deform_conv2d as own_deform_conv2d

theirs = torchvision.ops.deform_conv2d
OPERATORS = [theirs, own_deform_conv2d]


class Deform(nn.Module):
    """A deformable convolution of unequal geometry with an offset convolution."""

    def __init__(self, operator=theirs, channels=4, stride=(2, 1)):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 3, 2))
        self.operator, self.geometry = operator, {"stride": stride, "padding": (1, 2), "dilation": (1, 2)}
        self.conv_offset = nn.Conv2d(channels, 2 * 2 * 6, (3, 2), **self.geometry)

    def forward(self, x):
        return self.operator(x, self.conv_offset(x).clamp(-3, 3), self.weight, **self.geometry)


class Net(nn.Module):
    """Two layers in a row and one beside them, behind all kinds of operators that move the grid."""

    def __init__(self, operator=theirs):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((3, 0, 1, 2)), nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.low, self.side, self.top = Deform(operator), Deform(operator), Deform(operator)
        self.start, self.detour = 3, False

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 2)[:, :, self.start : self.start + 20].flip(-1)
        if self.detour:
            x = F.pad(x, (0, 0, 1, 0))[:, :, :-1]
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        low = self.low(x)
        self.side(torch.cat([x[:, :2] + 1, x[:, 2:]], 1))
        return self.top(F.relu(low) * 2)


def seen(net, *inputs):
    with capture(net) as fields:
        for x in inputs:
            net(x)
    return fields


def told(fields):
    """All that is known of fields beside their offsets."""
    return [(name, f.cells, f.below, f.source, f.input_size, f.placements) for name, f in fields.items()]


IMAGE = (2, 3, 120, 90)

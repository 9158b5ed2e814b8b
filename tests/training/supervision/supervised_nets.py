"""A network with two deformable convolutions, by each kind of call, and boxes for its two images."""

import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from deformscope.ops import deform_conv2d

BOXES = [torch.tensor([[3.0, 5.0, 29.0, 21.0]]), torch.tensor([[8.0, 2.0, 20.0, 30.0], [10.0, 4.0, 16.0, 12.0]])]


class Layer(nn.Module):
    """An offset convolution and a deformable one: by torchvision's module, its function, or deformscope's operator."""

    def __init__(self, kind: str, channels: int = 4, groups: int = 1, kernel=(3, 3)) -> None:
        super().__init__()
        self.kind = kind
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.offset = nn.Conv2d(channels, 2 * groups * kernel[0] * kernel[1], kernel, padding=padding)
        self.conv = torchvision.ops.DeformConv2d(channels, channels, kernel, padding=padding)
        nn.init.normal_(self.offset.weight, std=0.05)

    def forward(self, x):
        offset = self.offset(x)
        if self.kind == "module":
            return self.conv(x, offset)
        if self.kind == "function":
            return torchvision.ops.deform_conv2d(x, offset, self.conv.weight, self.conv.bias, padding=self.conv.padding)
        return deform_conv2d(x, offset, self.conv.weight, self.conv.bias, padding=self.conv.padding, impl=self.kind)


KINDS = ("module", "function", "embedding_bag", "torchvision")


class Net(nn.Module):
    """A trunk at stride 4, two layers on top of each other."""

    def __init__(self, kind: str = "module", **settings) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, 4)
        self.one, self.two = Layer(kind, **settings), Layer(kind, **settings)
        self.frozen_in_checkpoints: bool | None = None

    def forward(self, x):
        x = self.stem(x)
        if self.frozen_in_checkpoints is None:
            return self.two(self.one(x))
        x = checkpoint(self.one, x, use_reentrant=self.frozen_in_checkpoints)
        return checkpoint(self.two, x, use_reentrant=self.frozen_in_checkpoints)


def net(kind: str = "module", **settings) -> Net:
    torch.manual_seed(0)
    return Net(kind, **settings).double()


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

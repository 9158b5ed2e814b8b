"""A network whose deformable convolution is known in all its parts: what comes in, what goes out, what follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Known(nn.Module):
    """A convolution, a deformable one of unequal geometry with bias, and a smooth function of all its cells."""

    def __init__(self, operator, modulated=True, groups=2, stride=(2, 1), dilation=(1, 2), seed=3):
        super().__init__()
        self.random = torch.Generator().manual_seed(seed)
        self.operator, self.modulated, self.groups = operator, modulated, groups
        self.geometry = {"stride": stride, "padding": (1, 2), "dilation": dilation}
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.conv_offset = nn.Conv2d(4, groups * 6 * (3 if modulated else 2), (3, 2), **self.geometry)
        self.weight, self.bias = nn.Parameter(self.normal(6, 4, 3, 2)), nn.Parameter(self.normal(6))
        self.head = nn.Conv2d(6, 5, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.4 * self.normal(*parameter.shape))
        self.double()

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        """Images to the outputs of all cells; what the deformable convolution saw and gave is kept."""
        self.x = self.stem(images).tanh()
        raw = self.conv_offset(self.x)
        points = 6 * self.groups
        self.offset = raw[:, : 2 * points]
        self.mask = raw[:, 2 * points :].sigmoid() if self.modulated else None
        self.z = self.operator(self.x, self.offset, self.weight, self.bias, mask=self.mask, **self.geometry)
        return self.after(self.z)

    def after(self, z: Tensor) -> Tensor:
        """The outputs [n 5 h w] from the deformable convolution's."""
        return self.head(z.tanh()).exp() * z.mean(dim=(1, 2, 3), keepdim=True).cos()


def one_output(outputs: Tensor) -> Tensor:
    """One number of a cell in the middle."""
    h, w = outputs.shape[-2:]
    return outputs[0, 3, h // 2, w // 2]

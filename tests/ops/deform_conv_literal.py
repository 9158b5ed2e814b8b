"""The deformable convolution as seven literal loops in float64, and random arguments for it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from deformscope.ops import deform_conv2d


@dataclass(frozen=True)
class Case:
    """One set of arguments."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    mask: Tensor | None = None

    def leaves(self) -> list[Tensor]:
        """The tensors that may have gradients."""
        return [t for t in (self.input, self.offset, self.weight, self.bias, self.mask) if t is not None]

    def call(self, impl: str = "embedding_bag") -> Tensor:
        """The output of one implementation."""
        geometry = (self.stride, self.padding, self.dilation)
        return deform_conv2d(self.input, self.offset, self.weight, self.bias, *geometry, self.mask, impl=impl)

    def results(self, impl: str = "embedding_bag") -> list[Tensor]:
        """Output and the gradients of :meth:`leaves`, for a random gradient of the output."""
        leaves = self.leaves()
        for leaf in leaves:
            leaf.requires_grad_()
        output = self.call(impl)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
            output.dtype
        )
        return [output.detach(), *torch.autograd.grad(output, leaves, grad)]

    def to(self, dtype: torch.dtype) -> Case:
        """The same in another dtype."""
        tensors = {key: value.detach().to(dtype) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


def deform_conv2d_literal(case: Case) -> Tensor:
    """Zhu et al. (CVPR 2019), Eq. 1, a number at a time."""
    x, weight = case.input.tolist(), case.weight.tolist()
    n, channels, height, width = case.input.shape
    out, ingroup, kh, kw = case.weight.shape
    groups, offset_groups = channels // ingroup, case.offset.shape[1] // (2 * kh * kw)
    sy, sx = case.stride
    py, px = case.padding
    dy, dx = case.dilation
    result = torch.zeros(n, out, *case.offset.shape[2:], dtype=torch.float64)

    def value(image: int, channel: int, y: float, x_: float) -> float:
        total = 0.0
        for row, column in product((math.floor(y), math.floor(y) + 1), (math.floor(x_), math.floor(x_) + 1)):
            if 0 <= row < height and 0 <= column < width:
                total += (1 - abs(y - row)) * (1 - abs(x_ - column)) * x[image][channel][row][column]
        return total

    for i, o, oy, ox in product(range(n), range(out), *map(range, result.shape[2:])):
        total = 0.0 if case.bias is None else float(case.bias[o])
        for c, ky, kx in product(range(ingroup), range(kh), range(kw)):
            channel = o // (out // groups) * ingroup + c
            point = channel // (channels // offset_groups) * kh * kw + ky * kw + kx
            moved_y = oy * sy - py + ky * dy + float(case.offset[i, 2 * point, oy, ox])
            moved_x = ox * sx - px + kx * dx + float(case.offset[i, 2 * point + 1, oy, ox])
            modulation = 1.0 if case.mask is None else float(case.mask[i, point, oy, ox])
            total += weight[o][c][ky][kx] * modulation * value(i, channel, moved_y, moved_x)
        result[i, o, oy, ox] = total
    return result


def asymmetric(
    offset_scale: float = 1.5, modulated: bool = True, groups: int = 2, dtype: torch.dtype = torch.float64
) -> Case:
    """Kernel (3, 2), stride (2, 1), two offset groups, nothing square."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    mask = normal(2, 12, 5, 10).sigmoid()
    return Case(
        normal(2, 6, 9, 7),
        offset_scale * normal(2, 24, 5, 10),
        normal(4, 6 // groups, 3, 2),
        normal(4),
        (2, 1),
        (1, 2),
        (1, 1),
        mask if modulated else None,
    )


def random_case(seed: int, largest: int = 12) -> Case:
    """Anything torchvision accepts: groups that cut through offset groups, empty batches, whole and wild offsets."""
    draw, normal = random.Random(seed), torch.Generator().manual_seed(seed)

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw.randint(low, high), draw.randint(low, high)

    while True:
        groups, g = draw.choice((1, 1, 2, 3, 4)), draw.choice((1, 1, 2, 3, 4))
        channels = math.lcm(groups, g) * draw.choice((1, 1, 2, 3))
        out, n = groups * draw.choice((1, 2, 3, 7)), draw.choice((0, 1, 1, 2, 3))
        kernel, stride, padding, dilation, size = pair(1, 4), pair(1, 3), pair(0, 3), pair(1, 3), pair(1, largest)
        h, w = ((size[a] + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1))
        if h >= 1 and w >= 1:
            break

    def tensor(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=normal, dtype=torch.float64)

    points = kernel[0] * kernel[1]
    offset = draw.choice((0.0, 0.5, 3.0, 100.0)) * tensor(n, 2 * g * points, h, w)
    offset = offset.round() if draw.random() < 0.4 else offset
    if draw.random() < 0.3:
        channels_last, every_other = torch.channels_last, tensor(n, channels, size[0], 2 * size[1])[..., ::2]
        input = every_other if draw.random() < 0.5 else tensor(n, channels, *size).to(memory_format=channels_last)
    else:
        input = tensor(n, channels, *size)
    return Case(
        input.detach(),
        offset,
        tensor(out, channels // groups, *kernel),
        tensor(out) if draw.random() < 0.5 else None,
        stride,
        padding,
        dilation,
        tensor(n, g * points, h, w).sigmoid() if draw.random() < 0.6 else None,
    )


def relative(found: Tensor, expected: Tensor) -> float:
    """Greatest difference over the greatest magnitude (0 / 0 = 0)."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise AssertionError(f"{found.shape} {found.dtype} against {expected.shape} {expected.dtype}")
    if not expected.numel():
        return 0.0
    difference, scale = float((found - expected).abs().max()), float(expected.abs().max())
    return difference / scale if scale else difference

"""The geometry of a call of a deformable convolution: its checked arguments as plain integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Size, Tensor

from ..errors import DeformscopeError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Sizes of one call. n images, c channels, G groups, g offset groups, K kernel points, h × w output cells."""

    input_size: Pair
    output_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    offset_groups: int
    samples: int
    """Sampling points: n·g·K·h·w."""
    sample_channels: int
    """Channels that a sampling point reads: c/g."""
    outside: float
    """An offset, in input cells, that moves every kernel point of every cell out of the map, also when rounded to half
    precision."""

    @property
    def points(self) -> int:
        """Kernel points K."""
        return self.kernel_size[0] * self.kernel_size[1]


def pair(value: int | Sequence[int], name: str, least: int) -> Pair:
    """Convert an int or a (y, x) pair of ints to a pair."""
    if type(value) is int and value >= least:
        return value, value
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    if len(both) != 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < least for v in both):
        raise DeformscopeError(f"{name}={value!r}: expected one int or a (y, x) pair of ints, each at least {least}")
    return both[0], both[1]


def check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    mask: Tensor | None,
) -> Geometry:
    """The call's geometry; groups are inferred from ``weight``, offset groups from ``offset``, as torchvision does.

    Raises DeformscopeError naming the first argument that does not fit the others.
    """
    device = input.device
    for tensor in (input, offset, weight, bias, mask):
        if tensor is not None and not (tensor.is_floating_point() and tensor.device == device):
            _refuse(input=input, offset=offset, weight=weight, bias=bias, mask=mask)
    # Sizes are tensors while tracing, and a compiler caches by itself.
    known = _geometry.__wrapped__ if torch.jit.is_tracing() or torch.compiler.is_compiling() else _geometry
    return known(
        input.shape,
        offset.shape,
        weight.shape,
        None if bias is None else bias.shape,
        None if mask is None else mask.shape,
        pair(stride, "stride", 1),
        pair(padding, "padding", 0),
        pair(dilation, "dilation", 1),
    )


def _refuse(**tensors: Tensor | None) -> None:
    """Raise DeformscopeError for a tensor with a wrong dtype, or on another device than the input."""
    device = next(tensor.device for tensor in tensors.values() if tensor is not None)
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise DeformscopeError(f"{name} of dtype {tensor.dtype}: expected floating point; convert it with .float()")
        if tensor is not None and tensor.device != device:
            raise DeformscopeError(f"{name} on {tensor.device}: expected it beside input, on {device}")


@lru_cache(1024)
def _geometry(
    input: Size,
    offset: Size,
    weight: Size,
    bias: Size | None,
    mask: Size | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Geometry:
    """The geometry for these shapes; cached, since on a very small map the checks take as long as the convolution."""
    for name, shape in (("input", input), ("offset", offset), ("weight", weight), ("bias", bias), ("mask", mask)):
        if shape is not None and len(shape) != (1 if name == "bias" else 4):
            axes = "1 axis [out_channels]" if name == "bias" else "4 axes"
            raise DeformscopeError(f"{name} of shape {tuple(shape)}: expected {axes}")
    n, channels, height, width = map(int, input)  # while tracing, sizes are tensors
    out_channels, group_channels, *kernel = map(int, weight)
    if min(out_channels, group_channels, *kernel) < 1:
        raise DeformscopeError(f"weight of shape {tuple(weight)}: expected no empty axis")
    if min(channels, height, width) < 1 or channels % group_channels:
        raise DeformscopeError(
            f"input of shape {tuple(input)}: expected [n channels height width], none but n empty, with channels "
            f"a multiple of weight.shape[1] = {group_channels}"
        )
    groups, points = channels // group_channels, kernel[0] * kernel[1]
    if out_channels % groups:
        raise DeformscopeError(
            f"weight of shape {tuple(weight)}: expected out_channels (the first axis) to be a multiple of the "
            f"{groups} groups that {channels} input channels make"
        )
    if bias is not None and bias[0] != out_channels:
        raise DeformscopeError(f"bias of shape {tuple(bias)}: expected [{out_channels}], weight's out_channels")
    h, w = (
        (size + 2 * pad - spread * (reach - 1) - 1) // step + 1
        for size, reach, step, pad, spread in zip((height, width), kernel, stride, padding, dilation, strict=True)
    )
    if min(h, w) < 1:
        raise DeformscopeError(
            f"input of {height}×{width} cells: too small for kernel {kernel[0]}×{kernel[1]}; pad it more or dilate less"
        )
    offset_groups = int(offset[1]) // (2 * points)
    if offset_groups < 1 or channels % offset_groups or tuple(offset) != (n, 2 * points * offset_groups, h, w):
        raise DeformscopeError(
            f"offset of shape {tuple(offset)}: expected [{n} {2 * points}·g {h} {w}] for {kernel[0]}×{kernel[1]} "
            f"kernel points, with the g offset groups a divisor of {channels} channels"
        )
    if mask is not None and tuple(mask) != (n, points * offset_groups, h, w):
        raise DeformscopeError(
            f"mask of shape {tuple(mask)}: expected {(n, points * offset_groups, h, w)}, one a kernel point"
        )
    return Geometry(
        (height, width),
        (h, w),
        (kernel[0], kernel[1]),
        stride,
        padding,
        dilation,
        groups,
        offset_groups,
        samples=n * offset_groups * points * h * w,
        sample_channels=channels // offset_groups,
        outside=-2.0 * (max(height, width) + max(padding) + 1),
    )

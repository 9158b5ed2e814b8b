"""A deformable convolution layer that can use a part of its offsets (Zhang et al., ICPRAM 2021, Table 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DeformscopeError
from ..fields.viewpoint import split
from ..ops import deform_conv2d
from .options import OffsetMode, checked_offset_mode


class DeformConv(nn.Module):
    """Deformable convolution v1, or v2 if ``modulated``, with its own offset convolution, which starts at zero.

    ``offset_mode`` is the part of the offsets that moves the kernel points: ``full``, ``feature`` (only d_f, the mean
    over the kernel), ``kernel`` (only d_k, the rest) or ``none``. Modulation is used in every mode: ``none`` is a plain
    convolution in v1, and in v2 a convolution with weighted samples. Gradients pass through the split. Parameters have
    MMDetection's names: ``weight``, ``conv_offset.{weight,bias}``; in v2 the last third of the channels of
    ``conv_offset`` is the modulation before its sigmoid.

    Example:
        >>> layer = DeformConv(16, 32, modulated=True, offset_mode="kernel")
        >>> layer(torch.randn(1, 16, 20, 30)).shape
        torch.Size([1, 32, 20, 30])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 1,
        dilation: int = 1,
        groups: int = 1,
        offset_groups: int = 1,
        modulated: bool = False,
        offset_mode: OffsetMode = "full",
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups
        self.offset_groups, self.modulated = offset_groups, modulated
        self.offset_mode = checked_offset_mode(offset_mode)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        channels = offset_groups * kernel_size**2 * (3 if modulated else 2)
        self.conv_offset = nn.Conv2d(in_channels, channels, kernel_size, self.stride, self.padding, self.dilation)
        for parameter in self.conv_offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, offsets: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """Convolve ``[n in_channels h w]`` to ``[n out_channels h' w']``; ``offsets`` is the result of :meth:`offsets`
        for ``x``."""
        if self.offset_mode == "none" and not self.modulated:
            return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        offset, modulation = self.offsets(x) if offsets is None else offsets
        return deform_conv2d(x, offset, self.weight, None, self.stride, self.padding, self.dilation, modulation)

    def offsets(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The offset ``[n 2·g·k h' w']`` in ``offset_mode`` and the modulation ``[n g·k h' w']`` for the operator."""
        raw = self.conv_offset(x)
        points = raw.shape[1] // 3 if self.modulated else raw.shape[1] // 2
        offset, modulation = raw[:, : 2 * points], raw[:, 2 * points :].sigmoid() if self.modulated else None
        if self.offset_mode == "full":
            return offset, modulation
        if self.offset_mode == "none":
            return torch.zeros_like(offset), modulation
        n, _, h, w = offset.shape
        field = offset.view(n, self.offset_groups, -1, 2, h, w).movedim(3, -1)
        d_f, d_k = split(field)
        part = d_f.expand_as(field) if self.offset_mode == "feature" else d_k
        return part.movedim(-1, 3).reshape(offset.shape), modulation


def set_offset_mode(model: nn.Module, offset_mode: OffsetMode) -> None:
    """Set the offset mode of every :class:`DeformConv` of ``model``.

    Weights and modulation are unchanged. Raises DeformscopeError for an unknown mode, or a model without such layers.

    Example:
        >>> detector = ds.load("packaged")
        >>> set_offset_mode(detector, "feature")        # only d_f moves the kernels
    """
    checked_offset_mode(offset_mode)
    layers = [module for module in model.modules() if isinstance(module, DeformConv)]
    if not layers:
        raise DeformscopeError(f"offset_mode={offset_mode!r}: the model has no DeformConv whose offsets could be split")
    for layer in layers:
        layer.offset_mode = offset_mode

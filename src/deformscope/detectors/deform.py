"""The deformable convolution layer whose offsets can be taken apart (Zhang et al., ICPRAM 2021, Table 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DeformscopeError
from ..fields.viewpoint import split
from ..ops import deform_conv2d
from .offset_mode import OffsetMode, checked_offset_mode


class DeformConv(nn.Module):
    """Deformable convolution v1, or v2 when ``modulated``, with its own offset convolution, which starts at zero.

    ``offset_mode`` says which part of the offsets moves the kernel points: ``full`` both, ``feature`` only d_f (their
    mean over the kernel), ``kernel`` only d_k (the rest), ``none`` nothing. The modulation of v2 stays in every mode:
    ``none`` is a plain convolution with v1, and with v2 one whose samples, all in their regular places, are weighted.
    Gradients pass through the split. Parameter names are MMDetection's: ``weight``, ``conv_offset.{weight,bias}``;
    with v2 the last third of ``conv_offset``'s channels is the modulation before its sigmoid.
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
        """``[n in_channels h w]`` to ``[n out_channels h' w']``; ``offsets``: :meth:`offsets` of ``x``."""
        if self.offset_mode == "none" and not self.modulated:
            return F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        offset, modulation = self.offsets(x) if offsets is None else offsets
        return deform_conv2d(x, offset, self.weight, None, self.stride, self.padding, self.dilation, modulation)

    def offsets(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The operator's offset ``[n 2·g·k h' w']``, ``offset_mode``'s part of it, and modulation ``[n g·k h' w']``."""
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
    """Let every :class:`DeformConv` of ``model`` use that part of its offsets.

    Weights and modulation stay as they are. Raises DeformscopeError for another word, or a model without such layers.
    """
    checked_offset_mode(offset_mode)
    layers = [module for module in model.modules() if isinstance(module, DeformConv)]
    if not layers:
        raise DeformscopeError(f"offset_mode={offset_mode!r}: the model has no DeformConv whose offsets could be split")
    for layer in layers:
        layer.offset_mode = offset_mode

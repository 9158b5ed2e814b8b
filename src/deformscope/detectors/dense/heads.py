"""The heads of a dense detector: deformable 3×3 convolutions per level, one or more or none, and 1×1 convolutions."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...ops.gradient import graded
from ..deform import DeformConv
from . import decode
from .config import DenseConfig
from .masks import OF_OFFSETS, PARAMETERS


class HeadOutput(NamedTuple):
    """What a head gives for every cell of its level, ``[n c h w]``."""

    logits: Tensor
    """Of the classes."""
    box: Tensor | None
    """The input of the box decoder; None without a box layer."""
    iou: Tensor
    """IoU logits."""
    offsets: list[Tensor]
    """Of the head's layers, lowest first; left out where nothing is made of them."""
    mask: Tensor | None
    """The weights of the masks' dynamic layer, if there is one."""


class LevelHead(nn.Module):
    """The head of a level: deformable 3×3, GroupNorm, ReLU (one or more times), then 1×1 convolutions.

    Without deformable convolutions: GroupNorm, ReLU, 1×1 convolutions.
    """

    def __init__(self, config: DenseConfig, classes: int) -> None:
        super().__init__()
        channels = config.channels

        def deform() -> DeformConv:
            return DeformConv(channels, channels, modulated=config.modulated, offset_mode=config.offset_mode)

        self.before = nn.Sequential()
        for _ in range(config.deform_layers - 1):
            self.before.extend([deform(), nn.GroupNorm(channels // 8, channels), nn.ReLU()])
        self.deform = deform() if config.deform_layers else nn.Identity()
        self.norm = nn.GroupNorm(channels // 8, channels)
        self.mix = nn.Conv2d(channels, 2 * channels, 1)
        self.cls = nn.Conv2d(2 * channels, classes, 1)
        self.box = nn.Conv2d(2 * channels, 4, 1)
        self.iou = nn.Conv2d(2 * channels, 1, 1)
        # The class bias corresponds to a prior of 1 %, for the focal loss (Lin et al., ICCV 2017).
        for layer, bias in ((self.cls, -4.6), (self.box, decode.BIAS[config.decode]), (self.iou, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias = nn.Parameter(torch.full((layer.out_channels,), bias))
        # Created last, so that the others have the same initial weights whichever way boxes are decoded.
        self.decoding = config.decode
        if config.decode in decode.FROM_KERNEL_ALONE:
            del self.box
        if config.decode in decode.SCALED:
            self.log_scale = nn.Parameter(torch.full((2,), decode.LOG_SCALE[config.decode]))
        if config.decode == "D4":
            self.told = nn.utils.skip_init(nn.Conv2d, 4, 2 * channels, 1, bias=False)  # draws no random numbers
            nn.init.zeros_(self.told.weight)
        self.gives_offsets = config.decode not in decode.FROM_CELL or any(
            term in OF_OFFSETS for term in config.mask_terms
        )
        if "dynamic" in config.mask_terms:
            self.controller = nn.Conv2d(2 * channels, PARAMETERS, 1)
            nn.init.normal_(self.controller.weight, std=0.01)
        self.task_gradient = 1.0
        """Factor on the boxes' gradient into the offsets, where boxes are decoded from them."""

    def forward(self, x: Tensor) -> HeadOutput:
        """The predictions of a level of the pyramid."""
        if not self.gives_offsets:
            x = F.relu(self.mix(F.relu(self.norm(self.deform(self.before(x))))))
            return self._predicted(x, [])
        offsets = []
        for layer in (*self.before, self.deform):
            if isinstance(layer, DeformConv):
                offset, modulation = layer.offsets(x)
                offsets.append(graded(offset, self.task_gradient))
                x = layer(x, (offset, modulation))
            else:
                x = layer(x)
        x = self.mix(F.relu(self.norm(x)))
        if self.decoding == "D4":
            x = x + self.told(decode.numbers(offsets).to(x.dtype))
        return self._predicted(F.relu(x), offsets)

    def _predicted(self, x: Tensor, offsets: list[Tensor]) -> HeadOutput:
        box = None if self.decoding in decode.FROM_KERNEL_ALONE else self.box(x)
        mask = self.controller(x) if hasattr(self, "controller") else None
        return HeadOutput(self.cls(x), box, self.iou(x), offsets, mask)


def share(own: nn.Module, other: nn.Module) -> None:
    """Share the parameters of ``own`` with ``other``, a module of the same kind; capture still distinguishes the
    modules."""
    for name, parameter in own.named_parameters():
        place, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(place), leaf, parameter)

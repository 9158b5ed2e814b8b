"""A one-stage detector that is small enough to be trained from scratch on two CPU cores in a minute and a half.

It has the packaged architecture's heads on a trunk of 3×3 convolutions with stride 2, whose cells see little, and no
top-down path. So information from beyond a cell's surroundings only comes through its deformable kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import DeformscopeError
from ..detector import Detector
from .config import DenseConfig
from .dense import DenseDetector


class SmallTrunk(nn.Module):
    """Five convolutions with stride 2; feature maps at strides 8, 16 and 32, whose cells see 31, 63 and 127 px."""

    taps: ClassVar = {2: "stride8", 3: "stride16", 4: "stride32"}

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [3, channels // 4, channels // 2, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(after // 4, after), nn.ReLU(inplace=True)
            )
            for before, after in itertools.pairwise(widths)
        )
        self.channels = tuple(widths[index + 1] for index in self.taps)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised RGB ``[n 3 h w]`` to feature maps by name."""
        maps = {}
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if index in self.taps:
                maps[self.taps[index]] = images
        return maps


class SideWays(nn.Module):
    """The lateral 1×1 convolutions of a pyramid, without its top-down path."""

    def __init__(self, before: Sequence[int], after: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, after, 1) for channels in before)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps by name to feature maps with ``after`` channels by name."""
        return {name: layer(one) for layer, (name, one) in zip(self.layers, maps.items(), strict=True)}


class SmallDetector(DenseDetector):
    """The packaged detector's heads and losses on a :class:`SmallTrunk`, which is trained."""

    kind = "small"
    saved_dtype = torch.float32
    torchvision_trunk = None
    load_trunk = Detector.load_trunk

    def __init__(self, config: DenseConfig, name: str = "small") -> None:
        if config.channels % 16:
            raise DeformscopeError(f"channels={config.channels}: expected a multiple of 16 in a small detector")
        super().__init__(config, name)
        trunk = SmallTrunk(config.channels)
        self.trunk = trunk
        self.fpn = SideWays(trunk.channels, config.channels)

"""A one-stage detector that is small enough to be trained from scratch on two CPU cores in a minute and a half.

It has the packaged architecture's heads on a trunk of 3×3 convolutions with stride 2, whose cells see little, and no
top-down path. So information from beyond a cell's surroundings only comes through its deformable kernel.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...errors import DeformscopeError
from ..deform import DeformConv
from ..detector import Detector
from ..offset_mode import OffsetMode
from .config import DenseConfig
from .dense import DenseDetector
from .trunk import SideWays
from .trunk_config import TrunkConfig


class SmallTrunk(nn.Module):
    """Five convolutions with stride 2; feature maps at strides 8, 16 and 32, whose cells see 31, 63 and 127 px.

    ``deformable`` are stages, 1 to 4, after which a deformable 3×3 convolution with GroupNorm and ReLU is added.
    """

    taps: ClassVar = {2: "stride8", 3: "stride16", 4: "stride32"}

    def __init__(self, channels: int, deformable: tuple[int, ...] = (), offset_mode: OffsetMode = "full") -> None:
        super().__init__()
        widths = [3, channels // 4, channels // 2, channels, channels, channels]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.GroupNorm(after // 4, after), nn.ReLU(inplace=True)
            )
            for before, after in itertools.pairwise(widths)
        )
        self.channels = tuple(widths[index + 1] for index in self.taps)
        if len(set(deformable)) < len(deformable) or any(not 1 <= stage < len(self.layers) for stage in deformable):
            raise DeformscopeError(f"trunk.deformable: {list(deformable)}; expected different stages, 1 to 4")
        self.deform = nn.ModuleDict()
        for stage in sorted(deformable):
            width = widths[stage + 1]
            own = DeformConv(width, width, offset_mode=offset_mode), nn.GroupNorm(width // 4, width), nn.ReLU()
            self.deform[str(stage)] = nn.Sequential(*own)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised RGB ``[n 3 h w]`` to feature maps by name."""
        maps = {}
        for index, layer in enumerate(self.layers):
            images = layer(images)
            if str(index) in self.deform:
                images = self.deform[str(index)](images)
            if index in self.taps:
                maps[self.taps[index]] = images
        return maps


class SmallDetector(DenseDetector):
    """The packaged detector's heads and losses on a :class:`SmallTrunk`, which is trained."""

    kind = "small"
    saved_dtype = torch.float32
    load_trunk = Detector.load_trunk

    def __init__(self, config: DenseConfig, name: str = "small") -> None:
        if config.channels % 16:
            raise DeformscopeError(f"channels={config.channels}: expected a multiple of 16 in a small detector")
        super().__init__(config, name)
        if config.trunk != TrunkConfig(deformable=config.trunk.deformable):
            raise DeformscopeError(f"trunk: {config.trunk}; a small detector's trunk has no settings but deformable")
        trunk = SmallTrunk(config.channels, config.trunk.deformable, config.offset_mode)
        self.trunk, self.torchvision_trunk = trunk, None
        self.fpn = SideWays(trunk.channels, config.channels)

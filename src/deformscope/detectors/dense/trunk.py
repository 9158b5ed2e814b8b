"""The trunk of the dense detectors: MobileNetV2 (Sandler et al., CVPR 2018), frozen up to a block, partly deformable.

Parameters have torchvision's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from ...errors import DeformscopeError
from ..deform import DeformConv
from ..options import OffsetMode
from .config import BLOCK_CHANNELS, TrunkConfig


class Trunk(nn.Module):
    """Normalised RGB to feature maps by name, ``stride8`` to ``stride32``. Blocks below ``config.first_trained`` are
    frozen."""

    def __init__(self, config: TrunkConfig | None = None, offset_mode: OffsetMode = "full") -> None:
        super().__init__()
        self.config = config = TrunkConfig() if config is None else config
        self.taps = {block: f"stride{stride}" for block, stride in config.taps.items()}
        self.channels = tuple(BLOCK_CHANNELS[block] for block in self.taps)
        self.features = mobilenet_v2().features[: config.last + 1]
        for block in config.deformable:
            self._deform(block, offset_mode)
        self.requires_grad_(False)
        self.features[config.first_trained :].requires_grad_(True)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode, since the running statistics are frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised RGB ``[n 3 h w]`` to feature maps by name."""
        return self._run(images, 0, {})

    def frozen(self) -> nn.Module | None:
        """The blocks that are not trained as one module, from images to the maps for :meth:`above`; None without."""
        first = self.config.first_trained
        if first > self.config.last:
            return self
        if first == 0:
            return None
        ends = [block for block in self.taps if block < first - 1] + [first - 1]
        parts = {}
        for before, end in pairwise([-1, *ends]):
            parts[self.taps.get(end, f"block{end}")] = self.features[before + 1 : end + 1]
        return Frozen(parts)

    def above(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps by name from the maps of :meth:`frozen`."""
        first = self.config.first_trained
        if first > self.config.last:
            return maps
        end = self.taps.get(first - 1, f"block{first - 1}")
        return self._run(maps[end], first, {name: maps[name] for name in self.taps.values() if name in maps})

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights of other projects: the same tensors in the same order, perhaps under other names. Offset
        convolutions are unchanged.

        Raises DeformscopeError for weights of another network.
        """
        own = {name: value for name, value in self.state_dict().items() if ".conv_offset." not in name}
        pairs = list(zip(own, weights.values(), strict=False))
        if len(pairs) < len(own) or any(own[name].shape != value.shape for name, value in pairs):
            raise DeformscopeError("its tensors are not MobileNetV2's in order; get another file")
        self.load_state_dict(dict(pairs), strict=False)

    def _run(self, x: Tensor, first: int, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        for block in range(first, self.config.last + 1):
            x = self.features[block](x)
            if block in self.taps:
                maps[self.taps[block]] = x
        return maps

    def _deform(self, block: int, offset_mode: OffsetMode) -> None:
        """Make the 3×3 convolution of a block deformable, with its weight."""
        layers = self.features[block].conv  # [1×1,] 3×3 depthwise (each with norm and ReLU6), 1×1, norm
        plain = layers[-3][0]
        (size, _), (stride, _), (padding, _) = plain.kernel_size, plain.stride, plain.padding
        deformable = DeformConv(
            plain.in_channels, plain.out_channels, size, stride, padding, groups=plain.groups, offset_mode=offset_mode
        )
        deformable.weight.data.copy_(plain.weight.data)
        layers[-3][0] = deformable


class Frozen(nn.Module):
    """Blocks one after the other, in parts; each part's output is kept under its name."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised RGB ``[n 3 h w]`` to feature maps by name."""
        maps = {}
        for name, part in self.parts.items():
            images = maps[name] = part(images)
        return maps


class SideWays(nn.Module):
    """The lateral 1×1 convolutions of a pyramid, without its top-down path."""

    def __init__(self, before: tuple[int, ...], after: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, after, 1) for channels in before)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps by name to feature maps with ``after`` channels by name."""
        return {name: layer(one) for layer, (name, one) in zip(self.layers, maps.items(), strict=True)}


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
            for before, after in pairwise(widths)
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

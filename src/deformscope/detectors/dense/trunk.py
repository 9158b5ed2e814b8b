"""The trunk of the dense detectors: a backbone trained on ImageNet, frozen up to a block, deformable where asked.

MobileNetV2 (Sandler et al., CVPR 2018) or a ResNet (He et al., CVPR 2016), under torchvision's names of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, resnet50

from ...errors import DeformscopeError
from ..deform import DeformConv
from ..options import OffsetMode
from .config import TrunkConfig

TITLES = {"mobilenet_v2": "MobileNetV2", "resnet18": "ResNet-18", "resnet50": "ResNet-50"}


class Trunk(nn.Module):
    """Normalised RGB to feature maps by name, ``stride8`` to ``stride32``. Blocks below ``config.first_trained`` are
    frozen."""

    def __init__(self, config: TrunkConfig | None = None, offset_mode: OffsetMode = "full") -> None:
        super().__init__()
        self.config = config = TrunkConfig() if config is None else config
        self.taps = {block: f"stride{stride}" for block, stride in config.taps.items()}
        self.channels = tuple(config.blocks.channels[block] for block in self.taps)
        self._names = self._mobilenet() if config.backbone == "mobilenet_v2" else self._resnet()
        for block in config.deformable:
            self._deform(block, offset_mode)
        self.requires_grad_(False)
        for block in range(config.first_trained, config.last + 1):
            for module in self._block(block):
                module.requires_grad_(True)

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
            modules = [module for block in range(before + 1, end + 1) for module in self._block(block)]
            parts[self.taps.get(end, f"block{end}")] = nn.Sequential(*modules)
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
            raise DeformscopeError(f"its tensors are not {TITLES[self.config.backbone]}'s in order; get another file")
        self.load_state_dict(dict(pairs), strict=False)

    def _run(self, x: Tensor, first: int, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        for block in range(first, self.config.last + 1):
            for module in self._block(block):
                x = module(x)
            if block in self.taps:
                maps[self.taps[block]] = x
        return maps

    def _block(self, block: int) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self._names[block]]

    def _mobilenet(self) -> list[list[str]]:
        """Take the blocks from torchvision's network; returns the names of each block's modules."""
        self.features = mobilenet_v2().features[: self.config.last + 1]
        return [[f"features.{block}"] for block in range(self.config.last + 1)]

    def _resnet(self) -> list[list[str]]:
        whole = (resnet18 if self.config.backbone == "resnet18" else resnet50)()
        names = [["conv1", "bn1", "relu", "maxpool"]]
        for name in names[0]:
            self.add_module(name, whole.get_submodule(name))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            left = self.config.last + 1 - len(names)
            if left > 0:
                layer = whole.get_submodule(stage)
                assert isinstance(layer, nn.Sequential)
                self.add_module(stage, layer[:left])
                names += [[f"{stage}.{index}"] for index in range(min(left, len(layer)))]
        return names

    def _deform(self, block: int, offset_mode: OffsetMode) -> None:
        """Make the 3×3 convolution of a block deformable, with its weight."""
        (name,) = self._names[block]
        if self.config.backbone == "mobilenet_v2":  # [1×1,] 3×3 depthwise (each with norm and ReLU6), 1×1, norm
            layers = self.get_submodule(f"{name}.conv")
            assert isinstance(layers, nn.Sequential)
            name, leaf = f"{name}.conv.{len(layers) - 3}", "0"
        else:
            leaf = "conv2"
        around = self.get_submodule(name)
        plain = getattr(around, leaf)
        (size, _), (stride, _), (padding, _) = plain.kernel_size, plain.stride, plain.padding
        deformable = DeformConv(
            plain.in_channels, plain.out_channels, size, stride, padding, groups=plain.groups, offset_mode=offset_mode
        )
        deformable.weight.data.copy_(plain.weight.data)
        setattr(around, leaf, deformable)


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

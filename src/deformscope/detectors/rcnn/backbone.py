"""ResNet with deformable 3×3 convolutions in chosen stages (Dai et al., ICCV 2017; Zhu et al., CVPR 2019).

Modules have torchvision's names, so that ``backbone.layer2.0.conv2`` is the first deformable convolution and
torchvision's ImageNet weights can be loaded unchanged.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from ..deform import DeformConv
from .config import BLOCKS, STAGES, RCNNConfig


class ResNet(nn.Module):
    """ResNet up to stride 32. The statistics of batch norm, the stem and layer1 are frozen."""

    def __init__(self, config: RCNNConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, config.stem_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = config.stem_channels
        for index, (name, blocks) in enumerate(zip(STAGES.values(), BLOCKS[config.depth], strict=True)):
            width = config.base_channels * 2**index
            layer = [
                _bottleneck(channels if block == 0 else 4 * width, width, 2 if index and not block else 1, name, config)
                for block in range(blocks)
            ]
            channels = 4 * width
            self.add_module(name, nn.Sequential(*layer))
        self._freeze(config.dialect.affine_frozen)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """A normalised batch to C2..C5, strides 4 to 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for name in STAGES.values():
            x = getattr(self, name)(x)
            maps.append(x)
        return maps

    def train(self, mode: bool = True) -> ResNet:
        """Train mode for all modules except batch norm."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _freeze(self, affine: bool) -> None:
        for part in (self.conv1, self.bn1, self.layer1):
            part.requires_grad_(False)
        for module in self.modules():
            if affine and isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)


def _bottleneck(channels: int, width: int, stride: int, stage: str, config: RCNNConfig) -> Bottleneck:
    downsample = None
    if stride > 1 or channels != 4 * width:
        downsample = nn.Sequential(nn.Conv2d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))
    block = Bottleneck(channels, width, stride, downsample)
    first, second = (stride, 1) if config.dialect.stride_in_1x1 else (1, stride)
    if config.dialect.stride_in_1x1:
        block.conv1 = nn.Conv2d(channels, width, 1, first, bias=False)
        block.conv2 = nn.Conv2d(width, width, 3, second, 1, bias=False)
    deformable = config.deformable
    if deformable is not None and stage in deformable.stages:
        block.conv2 = DeformConv(
            width,
            width,
            stride=second,
            offset_groups=deformable.groups,
            modulated=deformable.modulated,
            offset_mode=config.offset_mode,
        )
    return block

"""The trunk of the dense detectors: MobileNetV2 (Sandler et al., CVPR 2018), trained on ImageNet and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from ...errors import DeformscopeError


class Trunk(nn.Module):
    """ImageNet MobileNetV2 up to stride 32, frozen; feature maps at strides 8, 16 and 32 (32, 96 and 320 channels)."""

    taps: ClassVar = {6: "stride8", 13: "stride16", 17: "stride32"}
    channels = (32, 96, 320)

    def __init__(self) -> None:
        super().__init__()
        self.features = mobilenet_v2().features[:18]
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Trunk:
        """Stay in eval mode, since the running statistics are frozen."""
        return super().train(False)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised RGB ``[n 3 h w]`` to feature maps by name."""
        maps = {}
        for index, block in enumerate(self.features):
            images = block(images)
            if index in self.taps:
                maps[self.taps[index]] = images
        return maps

    def load_published(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights of other projects: the same tensors in the same order, perhaps under other names.

        Raises DeformscopeError for weights of another network.
        """
        own = self.state_dict()
        pairs = list(zip(own, weights.values(), strict=False))
        if len(pairs) < len(own) or any(own[name].shape != value.shape for name, value in pairs):
            raise DeformscopeError("its tensors are not MobileNetV2's in order; get another file")
        self.load_state_dict(dict(pairs))

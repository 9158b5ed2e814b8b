"""Configuration of a dense detector's trunk: which backbone, how much of it, and where it is deformable."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Literal

from ...errors import DeformscopeError

Backbone = Literal["mobilenet_v2", "resnet18", "resnet50"]
STRIDES = (8, 16, 32)
"""Strides of the levels that can have a head."""


@dataclass(frozen=True)
class Blocks:
    """The blocks of a backbone, the stem first."""

    strides: tuple[int, ...]
    """Cumulative stride of each block's output, px."""
    channels: tuple[int, ...]


def _blocks(steps: tuple[int, ...], channels: tuple[int, ...]) -> Blocks:
    return Blocks(tuple(accumulate(steps, mul)), channels)


def _resnet(counts: tuple[int, ...], expansion: int) -> Blocks:
    steps, channels = [4], [64]
    for stage, count in enumerate(counts):
        steps += [1 if stage == 0 else 2, *[1] * (count - 1)]
        channels += [64 * expansion * 2**stage] * count
    return _blocks(tuple(steps), tuple(channels))


BACKBONES: dict[str, Blocks] = {
    "mobilenet_v2": _blocks(
        (2, 1, 2, 1, 2, 1, 1, 2, *[1] * 6, 2, 1, 1, 1),
        (32, 16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320),
    ),
    "resnet18": _resnet((2, 2, 2, 2), 1),
    "resnet50": _resnet((3, 4, 6, 3), 4),
}


@dataclass(frozen=True)
class TrunkConfig:
    """The trunk of a :class:`.dense.DenseDetector`, by default MobileNetV2 without deformable convolutions, frozen.

    Blocks are counted from the stem, 0: the entries of ``features`` of torchvision's MobileNetV2 (1 to 17), or the
    blocks of a ResNet's layer1 to layer4 one after the other (1 to 8 of ResNet-18, 1 to 16 of ResNet-50).
    """

    backbone: Backbone = "mobilenet_v2"
    deformable: tuple[int, ...] = ()
    """Blocks whose 3×3 convolution is deformable (version 1): depthwise in MobileNetV2, ``conv2`` in ResNets. Offsets
    start at zero, with which the trunk computes what it computes without them. In a ``small`` detector: stages, 1 to 4,
    after which a deformable 3×3 convolution is added."""
    thaw: int | None = None
    """First block that is trained; null for the lowest deformable one, or for none. The statistics of batch norm stay
    frozen."""
    cut: int | None = None
    """The last block; null for the last of the backbone."""
    levels: tuple[int, ...] | None = None
    """Strides of the feature maps that have a head, of 8, 16 and 32; null for all that the trunk has."""
    pyramid: bool = True
    """A feature pyramid (top-down path and 3×3 convolutions) before the heads; otherwise 1×1 convolutions."""

    def __post_init__(self) -> None:
        last = len(self.blocks.strides) - 1
        if self.cut is not None and not 1 <= self.cut <= last:
            raise DeformscopeError(f"trunk.cut: {self.cut}; expected a block of {self.backbone}, 1 to {last}, or null")
        wrong = [block for block in self.deformable if not 1 <= block <= self.last]
        if wrong or len(set(self.deformable)) < len(self.deformable):
            raise DeformscopeError(
                f"trunk.deformable: {list(self.deformable)}; expected different blocks of {self.backbone}, 1 to "
                f"{self.last}{'' if self.cut is None else ', where the trunk is cut'}"
            )
        if self.thaw is not None and not 0 <= self.thaw <= min(self.deformable, default=self.last):
            raise DeformscopeError(
                f"trunk.thaw: {self.thaw}; expected a block from 0 to "
                f"{f'{min(self.deformable)}, the lowest deformable one' if self.deformable else self.last}, or null"
            )
        reached = tuple(stride for stride in STRIDES if stride in self.blocks.strides[: self.last + 1])
        if not reached:
            raise DeformscopeError(f"trunk.cut: {self.cut}; expected a block at stride 8 or above, which heads need")
        if self.levels is not None and (
            not self.levels or self.levels != tuple(s for s in reached if s in self.levels)
        ):
            raise DeformscopeError(
                f"trunk.levels: {list(self.levels)}; expected some of {list(reached)}, the strides of the trunk, in "
                "this order, or null for all"
            )

    @property
    def blocks(self) -> Blocks:
        """The blocks of the whole backbone."""
        return BACKBONES[self.backbone]

    @property
    def last(self) -> int:
        """The last block of the trunk."""
        return len(self.blocks.strides) - 1 if self.cut is None else self.cut

    @property
    def first_trained(self) -> int:
        """The first block that is trained; one after the last if none is."""
        return min(self.deformable, default=self.last + 1) if self.thaw is None else self.thaw

    @property
    def taps(self) -> dict[int, int]:
        """The block that makes each level's feature map, and the level's stride."""
        ends = {stride: block for block, stride in enumerate(self.blocks.strides[: self.last + 1])}
        return {ends[stride]: stride for stride in STRIDES if stride in (self.levels or ends) and stride in ends}

"""Configurations from which dense detectors can be built again: trunk, heads, masks, second stage."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import mul
from typing import Literal, TypeVar, get_args

from ...errors import DeformscopeError
from ..options import OffsetMode, checked_offset_mode, chosen_sides

Backbone = Literal["mobilenet_v2"]
STRIDES = (8, 16, 32)
"""Strides of the levels that can have a head."""
BLOCK_STRIDES = tuple(accumulate((2, 1, 2, 1, 2, 1, 1, 2, *[1] * 6, 2, 1, 1, 1), mul))
"""Cumulative stride of each block's output in MobileNetV2, px, the stem first."""
BLOCK_CHANNELS = (32, 16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320)


@dataclass(frozen=True)
class TrunkConfig:
    """The trunk of a :class:`.dense.DenseDetector`, by default MobileNetV2 without deformable convolutions, frozen.

    Blocks are the entries of ``features`` of torchvision's MobileNetV2: the stem, 0, and 1 to 17.
    """

    backbone: Backbone = "mobilenet_v2"
    deformable: tuple[int, ...] = ()
    """Blocks whose depthwise 3×3 convolution is deformable (version 1). Offsets start at zero, with which the trunk
    computes what it computes without them. In a ``small`` detector: stages, 1 to 4, after which a deformable 3×3
    convolution is added."""
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
        last = len(BLOCK_STRIDES) - 1
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
        reached = tuple(stride for stride in STRIDES if stride in BLOCK_STRIDES[: self.last + 1])
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
    def last(self) -> int:
        """The last block of the trunk."""
        return len(BLOCK_STRIDES) - 1 if self.cut is None else self.cut

    @property
    def first_trained(self) -> int:
        """The first block that is trained; one after the last if none is."""
        return min(self.deformable, default=self.last + 1) if self.thaw is None else self.thaw

    @property
    def taps(self) -> dict[int, int]:
        """The block that makes each level's feature map, and the level's stride."""
        ends = {stride: block for block, stride in enumerate(BLOCK_STRIDES[: self.last + 1])}
        return {ends[stride]: stride for stride in STRIDES if stride in (self.levels or ends) and stride in ends}


Decode = Literal["D0", "D0c", "D2"]
"""How boxes are predicted; see :mod:`.heads`."""
FROM_CELL = ("D0", "D0c")
"""Those that need no offsets."""
MaskTerm = Literal["unary", "dynamic"]
MASK_TERMS: tuple[MaskTerm, ...] = get_args(MaskTerm)
"""What masks are made of; see :mod:`.masks`."""
MOST_LAYERS = 32
"""Most deformable convolutions per head; files with more are refused."""
MOST_HIDDEN = 512
"""Most channels of the masks' hidden convolutions; files with more are refused."""

Config = TypeVar("Config", bound="DenseConfig")


@dataclass(frozen=True)
class DenseConfig:
    """Configuration of a :class:`.dense.DenseDetector`."""

    class_names: tuple[str, ...]
    channels: int = 96
    modulated: bool = False
    offset_mode: OffsetMode = "full"
    shorter_side: int = 256
    longer_side: int = 448
    shared: bool = False
    """All levels share the weights of one head."""
    deform_layers: int = 1
    """Number of deformable convolutions in a head, one after the other; 0 for a head of 1×1 convolutions."""
    decode: Decode = "D0"
    """How boxes are predicted; see :mod:`.heads`."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    mask_terms: tuple[MaskTerm, ...] = ()
    """``("unary", "dynamic")``: there are masks, learned from boxes alone; see :mod:`.masks`."""
    mask_hidden: int = 0
    """Channels of two 3×3 convolutions before the masks' terms; 0 for none."""

    def __post_init__(self) -> None:
        chosen_sides(self.shorter_side, self.longer_side)
        checked_offset_mode(self.offset_mode)
        for name, value, known in (
            ("decode", self.decode, get_args(Decode)),
            ("mask_terms", self.mask_terms, ((), MASK_TERMS)),
        ):
            if value not in known:
                raise DeformscopeError(f"{name}={value!r}: expected one of {', '.join(map(repr, known))}")
        if not self.class_names:
            raise DeformscopeError("class_names=(): expected at least one class")
        if self.channels < 8 or self.channels % 8:
            raise DeformscopeError(f"channels={self.channels}: expected a multiple of 8")
        if not 0 <= self.mask_hidden <= MOST_HIDDEN or self.mask_hidden % 8:
            raise DeformscopeError(f"mask_hidden={self.mask_hidden}: expected a multiple of 8 up to {MOST_HIDDEN}")
        if self.mask_hidden and not self.mask_terms:
            raise DeformscopeError(f"mask_hidden={self.mask_hidden}: there are no masks; leave it out")
        if not 0 <= self.deform_layers <= MOST_LAYERS:
            raise DeformscopeError(f"deform_layers={self.deform_layers}: expected 0 to {MOST_LAYERS}")
        if self.deform_layers == 0 and self.decode not in FROM_CELL:
            raise DeformscopeError(
                f"decode={self.decode!r}: with deform_layers=0 the heads have no offsets; expected "
                f"{' or '.join(map(repr, FROM_CELL))}"
            )

    def resized_to(self: Config, shorter_side: int | None, longer_side: int | None) -> Config:
        """The same with other sides to which photos are resized, px; None keeps the present one."""
        short, long = chosen_sides(shorter_side, longer_side, (self.shorter_side, self.longer_side))
        return replace(self, shorter_side=short, longer_side=long)


@dataclass(frozen=True)
class DenseRCNNConfig(DenseConfig):
    """Configuration of a :class:`.dense_rcnn.DenseRCNN`."""

    proposals: int = 100
    """Regions per image that reach the second stage."""
    rois_per_image: int = 64
    """Regions per image sampled for the second stage's losses, up to a quarter of them objects."""
    width: int = 512
    """Width of the second stage's two layers."""
    masks: bool = False
    """Add a mask head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask_terms:
            raise DeformscopeError(f"mask_terms={self.mask_terms}: only of a detector with one stage; leave it out")
        for name in ("proposals", "rois_per_image", "width"):
            if getattr(self, name) < 1:
                raise DeformscopeError(f"{name}={getattr(self, name)}: expected at least 1")

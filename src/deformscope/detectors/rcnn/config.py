"""Configuration of two-stage detectors: widths, deformable stages, and the conventions of their framework.

Deformable stages have MMDetection's names: ``dconv_c3-c5`` is version 1 in the paper's stages 3 to 5 (layer2 to
layer4), ``mdconv_c3-c5_group4`` is version 2 with four offset groups.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ...errors import DeformscopeError
from ..options import OffsetMode, checked_offset_mode, chosen_sides
from ..preparation import Preparation
from .boxes import Deltas

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Bottlenecks in layer1..layer4, by depth."""
STAGES = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}
BOX_STDS: Deltas = (0.1, 0.1, 0.2, 0.2)
"""Units of the box head's deltas: the inverse of Detectron2's weights (10, 10, 5, 5)."""
RPN_STDS: Deltas = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Deformable:
    """Deformable stages, version and offset groups."""

    stages: tuple[str, ...] = ("layer2", "layer3", "layer4")
    modulated: bool = False
    groups: int = 1

    @classmethod
    def parse(cls, text: str) -> Deformable:
        """Parse a name: ``dconv_c3-c5``, ``mdconv_c4``, ``mdconv_c3,c5_group4``."""
        found = re.fullmatch(r"(m?)dconv_(c[2-5](?:-c[2-5]|(?:,c[2-5])*))(?:_group([1-9]\d*))?", text)
        if not found:
            raise DeformscopeError(
                f"deformable={text!r}: expected a name such as 'dconv_c3-c5', 'mdconv_c3-c5_group4' or 'dconv_c4,c5' "
                "(m for modulated; c2..c5 for layer1..layer4), or None for plain convolutions"
            )
        names = list(STAGES)
        if "-" in found[2]:
            first, last = (names.index(end) for end in found[2].split("-"))
            chosen = names[first : last + 1]
        else:
            chosen = sorted(set(found[2].split(",")))
        if not chosen:
            raise DeformscopeError(f"deformable={text!r}: no stage lies in {found[2]}; give the lower one first")
        return cls(tuple(STAGES[name] for name in chosen), bool(found[1]), int(found[3] or 1))

    def __str__(self) -> str:
        names = [name for name, stage in STAGES.items() if stage in self.stages]
        every = list(STAGES)
        run = every[every.index(names[0]) : every.index(names[-1]) + 1]
        where = f"{names[0]}-{names[-1]}" if len(names) > 1 and run == names else ",".join(names)
        return f"{'m' if self.modulated else ''}dconv_{where}{f'_group{self.groups}' if self.groups > 1 else ''}"


@dataclass(frozen=True)
class Dialect:
    """Conventions in which MMDetection and Detectron2 differ for the same network."""

    name: str
    stride_in_1x1: bool
    """A bottleneck's stride is in its first 1×1 convolution (otherwise in the 3×3)."""
    affine_frozen: bool
    """Scale and shift of batch norm are frozen (otherwise those of layer2..layer4 are trained). Its statistics always
    are."""
    rank_by_logit: bool
    """Rank proposals by logits (otherwise by probabilities, which have ties)."""
    clamp_shrink: bool
    """Clamp dw and dh from below as well as from above."""
    shifted_nms: bool
    """Suppress groups by shifting them apart, for any number of boxes."""
    boxes_first: bool
    """Map boxes to the photo before suppression, in detectors without masks (otherwise after it)."""
    clip_to_photo: bool
    """Clip boxes to the photo and drop empty ones."""
    preparation: Preparation


MMDETECTION = Dialect(
    name="mmdetection",
    stride_in_1x1=False,
    affine_frozen=False,
    rank_by_logit=False,
    clamp_shrink=True,
    shifted_nms=True,
    boxes_first=True,
    clip_to_photo=False,
    preparation=Preparation((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr=False, antialias=False),
)
DETECTRON2 = Dialect(
    name="detectron2",
    stride_in_1x1=True,
    affine_frozen=True,
    rank_by_logit=True,
    clamp_shrink=False,
    shifted_nms=False,
    boxes_first=False,
    clip_to_photo=True,
    preparation=Preparation((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), bgr=True, antialias=True),
)


@dataclass(frozen=True)
class RCNNConfig:
    """Configuration of a Faster R-CNN or, with ``mask``, Mask R-CNN on ResNet-FPN; widths are the published ones."""

    class_names: tuple[str, ...]
    depth: int = 50
    mask: bool = False
    deformable: Deformable | None = Deformable()
    offset_mode: OffsetMode = "full"
    dialect: Dialect = MMDETECTION
    stem_channels: int = 64
    base_channels: int = 64
    fpn_channels: int = 256
    head_channels: int = 1024
    mask_channels: int = 256
    mask_convs: int = 4

    def __post_init__(self) -> None:
        if self.depth not in BLOCKS:
            raise DeformscopeError(f"depth={self.depth}: expected one of {', '.join(map(str, BLOCKS))}")
        checked_offset_mode(self.offset_mode)
        if not 0 <= self.mask_convs <= 32:
            raise DeformscopeError(f"mask_convs={self.mask_convs}: expected 0 to 32")
        if not self.class_names:
            raise DeformscopeError("class_names=(): expected at least one class")

    @classmethod
    def named(
        cls, architecture: str, deformable: str | None, offset_mode: OffsetMode, class_names: tuple[str, ...]
    ) -> RCNNConfig:
        """The configuration of :func:`deformscope.detectors.build` for the same names."""
        found = re.fullmatch(r"(faster|mask)_rcnn_r(50|101|152)_fpn", architecture)
        if not found:
            raise DeformscopeError(
                f"architecture={architecture!r}: expected faster_rcnn_r50_fpn, mask_rcnn_r50_fpn, or either with r101"
            )
        layers = None if deformable is None else Deformable.parse(deformable)
        return cls(class_names, int(found[2]), found[1] == "mask", layers, offset_mode)

    @property
    def architecture(self) -> str:
        """The name for :func:`deformscope.detectors.build`."""
        return f"{'mask' if self.mask else 'faster'}_rcnn_r{self.depth}_fpn"

    def resized_to(self, shorter_side: int | None, longer_side: int | None) -> RCNNConfig:
        """The same with other sides to which photos are resized, px; None keeps the present one."""
        old = self.dialect.preparation
        short, long = chosen_sides(shorter_side, longer_side, (old.shorter_side, old.longer_side))
        return replace(
            self, dialect=replace(self.dialect, preparation=replace(old, shorter_side=short, longer_side=long))
        )


def coco_class_names() -> tuple[str, ...]:
    """COCO's 80 classes in the order of their ids, as in MMDetection and Detectron2."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(name for name in names if name not in ("__background__", "N/A"))


def numbered_class_names(number: int) -> tuple[str, ...]:
    """COCO's names for 80 classes, otherwise numbers."""
    if number < 1:
        raise DeformscopeError(f"num_classes={number}: expected at least 1")
    return coco_class_names() if number == 80 else tuple(f"class {i}" for i in range(number))

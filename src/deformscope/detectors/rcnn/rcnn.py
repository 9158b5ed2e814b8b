"""Faster and Mask R-CNN with deformable convolutions: the detectors of Zhang et al. (ICPRAM 2021), Table 1.

The stages are methods, so that each can be run separately: :meth:`RCNN.pyramid`, :meth:`RCNN.box_predictions`,
:meth:`RCNN.mask_predictions`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ...errors import DeformscopeError
from ...fields.places import Placement
from ...ops.pointwise import make_pointwise
from ..deform import DeformConv
from ..detector import Batch, Detection, TrainableDetector
from ..options import OffsetMode
from ..preparation import prepare
from .boxes import Sample
from .config import BLOCKS, STAGES, RCNNConfig, numbered_class_names
from .roi import BOX_GRID, MASK_GRID, BoxHead, MaskHead, object_masks, paste, pool, with_image
from .rpn import RPN

LEVELS = ("P2", "P3", "P4", "P5", "P6")


@dataclass(frozen=True)
class Samples:
    """The samples of an image that have a loss, to repeat a training step exactly."""

    anchors: Sequence[Sample]
    """Indices into the anchors on the image's own padded area."""
    proposals: Sequence[Sample]
    """Indices into the image's objects, followed by its proposals."""
    proposed: Sequence[Float[Tensor, "_ 4"]] | None = None
    """Proposals, xyxy in network px; None for the detector's own, whose order is not defined for equal scores."""


class RCNN(TrainableDetector):
    """A two-stage detector, built from ``config``."""

    kind = "rcnn"
    config: RCNNConfig

    def __init__(self, config: RCNNConfig, name: str = "") -> None:
        super().__init__()
        self.config, self.class_names, self.has_masks = config, config.class_names, config.mask
        self.trunk, self.torchvision_trunk = None, f"resnet{config.depth}"
        self.name = name or f"{config.architecture}_{config.deformable or 'plain'}"
        self.backbone = ResNet(config)
        widths = [4 * config.base_channels * 2**stage for stage in range(4)]
        self.neck = FeaturePyramidNetwork(widths, config.fpn_channels, LastLevelMaxPool())
        self.rpn = RPN(config)
        self.box_head = BoxHead(config)
        self.mask_head: nn.Module | None = MaskHead(config) if config.mask else None
        make_pointwise(self)

    def prepare(self, photos: Sequence[np.ndarray], shorter_side: int | None = None) -> tuple[Tensor, list[Placement]]:
        """Convert RGB uint8 photos ``[h w 3]`` to the network's input; also returns how each photo lies in it."""
        how = self.config.dialect.preparation
        return prepare(photos, how if shorter_side is None else replace(how, shorter_side=shorter_side))

    def pyramid(self, batch: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """The feature pyramid P2..P6."""
        maps = OrderedDict((name, m) for name, m in zip(LEVELS, self.backbone(batch), strict=False))
        return list(self.neck(maps).values())

    def box_predictions(self, maps: Sequence[Tensor], rois: Float[Tensor, "r 5"]) -> tuple[Tensor, Tensor]:
        """Class logits and box deltas of RoIs (image, xyxy in network px)."""
        return self.box_head(pool(maps, rois, BOX_GRID))

    def mask_predictions(self, maps: Sequence[Tensor], rois: Float[Tensor, "r 5"]) -> Tensor:
        """Mask logits of RoIs ``[r k 28 28]``."""
        assert self.mask_head is not None
        return self.mask_head(pool(maps, rois, MASK_GRID))

    def detect(
        self,
        batch: Tensor,
        placements: Sequence[Placement],
        *,
        min_score: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detection]:
        """The best detections after suppression at IoU ``nms``, in photo px."""
        maps = self.pyramid(batch)
        logits, deltas = self.rpn(maps)
        proposals = self.rpn.propose(logits, deltas, placements)
        logits, deltas = self.box_predictions(maps, with_image([p.boxes for p in proposals]))
        counts = [len(p.boxes) for p in proposals]
        found, regions = [], []
        for one, cls, box, placement in zip(
            proposals, logits.split(counts), deltas.split(counts), placements, strict=True
        ):
            detection, region = self.box_head.detections(one.boxes, cls, box, placement, min_score, nms, max_detections)
            found.append(detection)
            regions.append(region)
        if self.mask_head is not None:
            masks = self.mask_predictions(maps, with_image(regions))
            shares = masks.split([len(region) for region in regions])
            for detection, mask, placement in zip(found, shares, placements, strict=True):
                own = mask[torch.arange(len(mask), device=mask.device), detection["labels"]].sigmoid()
                detection["masks"] = paste(own, detection["boxes"], placement.size)
        return found

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        """Predictions of the box head for the regions of the detections, for the same classes."""
        regions, labels = found["region"], found["labels"]
        predictions = self.box_predictions(self.pyramid(batch), with_image([regions]))
        return self.box_head.repredict(regions, labels, predictions, placement)

    def losses(self, batch: Batch, samples: Samples | None = None) -> dict[str, Tensor]:
        """``loss_{rpn_cls,rpn_bbox,cls,bbox}`` and, with masks, ``loss_mask``; ignored objects are left out.

        Samples are drawn with torch's default generator unless ``samples`` is given.
        """
        assert batch.images is not None
        placements, targets = batch.placements, [_counted(target) for target in batch.targets]
        truth = [target["boxes"] for target in targets]
        maps = self.pyramid(batch.images)
        logits, deltas = self.rpn(maps)
        losses = self.rpn.losses(logits, deltas, placements, truth, None if samples is None else samples.anchors)
        if samples is not None and samples.proposed is not None:
            proposed = list(samples.proposed)
        else:
            proposed = [one.boxes for one in self.rpn.propose(logits, deltas, placements, training=True)]
        boxes: list[Tensor] = []
        objects: list[Tensor] = []
        labels: list[Tensor] = []
        goals: list[Tensor] = []
        for image, target in enumerate(targets):
            given = samples.proposals[image] if samples else None
            box, index = self.box_head.sample(proposed[image], truth[image], given)
            real = (index >= 0).nonzero()[:, 0]
            label, goal = torch.full_like(index, -1), torch.zeros_like(box)
            label[real], goal[real] = target["labels"][index[real]], truth[image][index[real]]
            for collection, value in zip((boxes, objects, labels, goals), (box, index, label, goal), strict=True):
                collection.append(value)
        logits, deltas = self.box_predictions(maps, with_image(boxes))
        losses |= self.box_head.losses(logits, deltas, torch.cat(boxes), torch.cat(labels), torch.cat(goals))
        if isinstance(self.mask_head, MaskHead):
            # Positives come first in each image, so these are the boxes with an object.
            objects = [index[index >= 0] for index in objects]
            boxes = [box[: len(index)] for box, index in zip(boxes, objects, strict=True)]
            masks = self.mask_predictions(maps, with_image(boxes))
            goal = object_masks([target["masks"] for target in targets], boxes, objects)
            positive = torch.cat(labels)
            losses |= self.mask_head.losses(masks, positive[positive >= 0], goal)
        return losses

    def load_trunk(self, weights: Mapping[str, Tensor]) -> None:
        """Load torchvision's ResNet of the same depth, trained on ImageNet; offset convolutions are unchanged."""
        try:
            missing = self.backbone.load_state_dict(weights, strict=False).missing_keys
        except RuntimeError as error:  # of another shape
            raise DeformscopeError(f"{' '.join(str(error).split())[:200]}; expected torchvision's ResNet") from None
        absent = [key for key in missing if "conv_offset" not in key]
        if absent:
            raise DeformscopeError(f"no {absent[0]!r}; expected torchvision's ResNet")


def _counted(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """A target without its ignored objects."""
    if "ignore" not in target:
        return target
    return {key: value[~target["ignore"]] for key, value in target.items() if key != "ignore"}


def build(
    architecture: str,
    *,
    deformable: str | None = "dconv_c3-c5",
    offset_mode: OffsetMode = "full",
    num_classes: int = 80,
    class_names: Sequence[str] | None = None,
) -> RCNN:
    """Build a detector with initial weights, in train mode. Its offset convolutions start at zero.

    ``architecture`` is ``faster_rcnn_r50_fpn`` or ``mask_rcnn_r50_fpn``, or either with r101. ``deformable`` gives
    version, stages and offset groups in MMDetection's notation: ``dconv_c3-c5``, ``mdconv_c3-c5_group4``; None for
    none. ``offset_mode`` is the part of the offsets that is used: ``full``, ``feature`` (d_f), ``kernel`` (d_k) or
    ``none``; modulation is always used. ``class_names`` sets the number of classes. To load torchvision's ImageNet
    weights, use ``detector.backbone.load_state_dict(resnet50(weights="DEFAULT").state_dict(), strict=False)``.

    Raises DeformscopeError for an unknown name.

    Example:
        >>> detector = build("faster_rcnn_r50_fpn", deformable="dconv_c5", class_names=("cat", "dog"))
        >>> detector.training, detector.class_names
        (True, ('cat', 'dog'))
    """
    names = numbered_class_names(num_classes) if class_names is None else tuple(class_names)
    return RCNN(RCNNConfig.named(architecture, deformable, offset_mode, names)).train()


class ResNet(nn.Module):
    """ResNet up to stride 32 with deformable 3×3 convolutions in chosen stages (Dai et al., ICCV 2017; Zhu et al., CVPR
    2019), under torchvision's names: ``backbone.layer2.0.conv2`` is the first deformable one.

     The statistics of batch norm, the stem and layer1 are frozen."""

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

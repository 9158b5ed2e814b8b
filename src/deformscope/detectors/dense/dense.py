"""The packaged architecture: a pyramid with deformable 3×3 convolutions followed only by 1×1 convolutions.

Every cell inside a box predicts it, so it has to cover the whole object with one deformable kernel, and the offsets
have to encode where the object is (d_f) and how large it is (d_k). Boxes are anchor-free as in FCOS (Tian et al., ICCV
2019), with an IoU branch for ranking instead of centre-ness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import (
    FeaturePyramidNetwork,
    batched_nms,
    box_iou,
    clip_boxes_to_image,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from ...errors import DeformscopeError
from ...fields.places import Placement
from ...ops.pointwise import make_pointwise
from ...recording.capture import placed
from ..detector import Batch, Detection, TrainableDetector
from ..preparation import padded, resize_pillow
from .config import DenseConfig, TrunkConfig
from .heads import LevelHead, decoded, share
from .masks import MaskBranch, in_photo
from .predictions import IGNORED, Predictions, assign, level_ranges, share_of_positives
from .trunk import SideWays, SmallTrunk, Trunk

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DenseDetector(TrainableDetector):
    """A dense detector: trunk, pyramid and heads."""

    kind: ClassVar[str] = "dense"
    saved_dtype = torch.float16
    has_masks = False
    config: DenseConfig
    trunk: nn.Module

    def __init__(
        self,
        config: DenseConfig,
        name: str = "dense",
        *,
        classes: int | None = None,
        trunk: Trunk | SmallTrunk | None = None,
    ) -> None:
        """``classes`` is the number of classes of the dense predictions, None for all; ``trunk`` None for the one that
        ``config`` describes."""
        super().__init__()
        self.name, self.config, self.class_names = name, config, config.class_names
        self.trunk = trunk = Trunk(config.trunk, config.offset_mode) if trunk is None else trunk
        self.torchvision_trunk = config.trunk.backbone if isinstance(trunk, Trunk) else None
        self.strides = tuple(config.trunk.taps.values())
        """Of the levels."""
        if config.trunk.pyramid and isinstance(trunk, Trunk):
            self.fpn: nn.Module = FeaturePyramidNetwork(list(trunk.channels), config.channels)
        else:
            self.fpn = SideWays(trunk.channels, config.channels)
        classes = len(config.class_names) if classes is None else classes
        self.heads = nn.ModuleDict({f"stride{stride}": LevelHead(config, classes) for stride in self.strides})
        # Created last, so that the others have the same initial weights with and without masks.
        terms = config.mask_terms
        self.masks = MaskBranch(config.channels, self.strides, config.mask_hidden) if terms else None
        if config.shared:
            _share_heads(self)
            # With load_state_dict(..., assign=True), each level has its own weights.
            self.register_load_state_dict_post_hook(_share_heads)
        make_pointwise(self)

    def prepare(self, photos: Sequence[np.ndarray], shorter_side: int | None = None) -> tuple[Tensor, list[Placement]]:
        """Resize bilinearly with fixed aspect ratio, normalise as for ImageNet, pad with zeros to multiples of 32 at
        right and bottom."""
        shorter_side = self.config.shorter_side if shorter_side is None else shorter_side
        mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
        images, placements = [], []
        for photo in photos:
            height, width = photo.shape[:2]
            scale = min(shorter_side / min(height, width), self.config.longer_side / max(height, width))
            size = max(1, round(height * scale)), max(1, round(width * scale))
            images.append((torch.from_numpy(np.array(resize_pillow(photo, size))).permute(2, 0, 1) / 255 - mean) / std)
            placements.append(Placement((height, width), (size[0] / height, size[1] / width)))
        return padded(images, 32), placements

    def detect(
        self,
        batch: Tensor,
        placements: Sequence[Placement],
        *,
        min_score: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detection]:
        """Detect: ``boxes`` (xyxy, photo px, clipped to the photo), ``labels`` (0-based) and ``scores``, best first.

        Photos of different sizes run through the network separately: GroupNorm would include the padding of a smaller
        photo, and its boxes would depend on its neighbours.
        """
        sizes = [placement.padded_size() for placement in placements]
        found: dict[int, Detection] = {}
        for height, width in dict.fromkeys(sizes):
            members = [index for index, size in enumerate(sizes) if size == (height, width)]
            own = [placements[index] for index in members]
            with placed(own):
                alike = self.detect_alike(
                    batch[members, :, :height, :width], own, min_score=min_score, nms=nms, max_detections=max_detections
                )
            found |= zip(members, alike, strict=True)
        return [found[index] for index in range(len(placements))]

    def detect_alike(
        self, batch: Tensor, placements: Sequence[Placement], *, min_score: float, nms: float, max_detections: int
    ) -> list[Detection]:
        """:meth:`detect` on photos of one size."""
        predictions = self.predict(self.trunk(batch.to(memory_format=torch.channels_last)))
        found = []
        for cls, boxes, iou, placement in zip(
            predictions.cls, predictions.boxes, predictions.iou, placements, strict=True
        ):
            best, label = _confidence(cls, iou[:, None]).max(dim=1)
            keep = best.topk(min(1000, len(best))).indices
            keep = keep[best[keep] > min_score]
            box = clip_boxes_to_image(placement.boxes_to_photo(boxes[keep]), placement.size)
            chosen = batched_nms(box, best[keep], label[keep], nms)[:max_detections]
            index = keep[chosen]
            own = {"boxes": box[chosen], "labels": label[index], "index": index}
            # The score of the ranking is used, since computing it again for a few cells may change its last bit.
            found.append(own | _traces(cls, iou, boxes, placement, own) | {"scores": best[index]})
            if self.masks is not None:
                with torch.no_grad():
                    logits = self.masks.logits(predictions, len(found) - 1, index)
                    found[-1]["masks"] = in_photo(logits, found[-1]["unclipped"], placement, self.strides[0])
        return found

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        """The predictions of the same cells and classes in another pass."""
        seen = self.predict(self.trunk(batch.to(memory_format=torch.channels_last)))
        return _traces(seen.cls[0], seen.iou[0], seen.boxes[0], placement, found)

    def predict(self, maps: dict[str, Tensor]) -> Predictions:
        """Dense predictions from the trunk's feature maps, which may come from a cache."""
        maps = self.fpn(maps)
        cls, boxes, iou, centres, level = [], [], [], [], []
        weights: list[Tensor] = []
        for index, stride in enumerate(self.strides):
            head = self.heads[f"stride{stride}"]
            logits, raw, quality, offsets, weight = head(maps[f"stride{stride}"])
            _, _, h, w = logits.shape
            # A cell's receptive field is centred on pixel stride · index, whose centre is half a pixel further.
            y, x = (torch.arange(size, device=logits.device) * stride + 0.5 for size in (h, w))
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
            raw, scale = raw.flatten(2).transpose(1, 2).float(), getattr(head, "log_scale", None)
            boxes.append(decoded(self.config.decode, centre, stride, raw, offsets, scale))
            cls.append(logits.flatten(2).transpose(1, 2).float())
            iou.append(quality.flatten(1).float())
            centres.append(centre)
            level.append(torch.full((h * w,), index, device=logits.device))
            if weight is not None:
                weights.append(weight.flatten(2).transpose(1, 2))
        return Predictions(
            torch.cat(cls, 1),
            torch.cat(boxes, 1),
            torch.cat(iou, 1),
            torch.cat(centres),
            torch.cat(level),
            maps,
            None if self.masks is None else self.masks.prepare(maps, weights),
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of a batch of images or of the frozen trunk's feature maps: :meth:`prediction_losses`."""
        if batch.maps is None:
            assert batch.images is not None
            maps = self.trunk(batch.images.to(memory_format=torch.channels_last))
        else:
            maps = self.trunk.above(batch.maps) if isinstance(self.trunk, Trunk) else batch.maps
        predictions = self.predict(maps)
        losses = self.prediction_losses(predictions, batch.targets)
        if self.masks is None:
            return losses
        if not all("masks" in target for target in batch.targets):
            raise DeformscopeError("targets: no 'masks', from which masks are learned; give those that GrabCut makes")
        return losses | self.masks.losses(predictions, batch.targets)

    def prediction_losses(self, predictions: Predictions, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Focal, GIoU and IoU-branch losses: ``loss_cls``, ``loss_box``, ``loss_iou``.

        Cells in ignored boxes have no loss.
        """
        ranges = level_ranges(self.strides)
        assigned = [assign(predictions.centres, predictions.level, t, ranges) for t in targets]
        label = torch.stack([a[0] for a in assigned])
        box = torch.stack([a[1] for a in assigned])
        inside = label >= 0
        count = share_of_positives(inside)
        onehot = F.one_hot(label.clamp(min=0), predictions.cls.shape[-1]) * inside[..., None]
        focal = sigmoid_focal_loss(predictions.cls, onehot.to(predictions.cls.dtype))
        focal = (focal * (label > IGNORED)[..., None]).sum() / count
        found, truth = predictions.boxes[inside], box[inside]
        giou = generalized_box_iou_loss(found, truth, reduction="sum") / count
        with torch.no_grad():
            quality = torch.vmap(box_iou)(
                found[:, None], truth[:, None]
            ).flatten()  # of pairs only, not of all with all
        iou = F.binary_cross_entropy_with_logits(predictions.iou[inside], quality, reduction="sum") / count
        return {"loss_cls": focal, "loss_box": giou, "loss_iou": iou}

    @property
    def head_sizes(self) -> dict[str, tuple[float, float]]:
        """The values of each level's cells that have a loss."""
        ranges = level_ranges(self.strides)
        return {f"heads.stride{stride}": sizes for stride, sizes in zip(self.strides, ranges, strict=True)}

    @property
    def frozen_trunk(self) -> nn.Module | None:
        """The blocks of the trunk below the first that is trained."""
        return self.trunk.frozen() if isinstance(self.trunk, Trunk) else None

    def set_task_gradient(self, share: float) -> None:
        """What of the boxes' gradient flows into the offsets, where boxes are decoded from these."""
        for head in self.heads.values():
            assert isinstance(head, LevelHead)
            head.task_gradient = share

    def load_trunk(self, weights: Mapping[str, Tensor]) -> None:
        """Load weights of the trunk's backbone, of the packaged detector or of other projects: see
        :meth:`.trunk.Trunk.load_published`."""
        assert isinstance(self.trunk, Trunk)
        self.trunk.load_published(weights)


class SmallDetector(DenseDetector):
    """The packaged detector's heads and losses on a :class:`.trunk.SmallTrunk`, which is trained.

    It is small enough to be trained from scratch on two CPU cores in a minute and a half. The trunk's cells see little,
    and there is no top-down path, so information from beyond a cell's surroundings only comes through its deformable
    kernel.
    """

    kind = "small"
    saved_dtype = torch.float32
    load_trunk = TrainableDetector.load_trunk

    def __init__(self, config: DenseConfig, name: str = "small") -> None:
        if config.channels % 16:
            raise DeformscopeError(f"channels={config.channels}: expected a multiple of 16 in a small detector")
        if config.trunk != TrunkConfig(deformable=config.trunk.deformable):
            raise DeformscopeError(f"trunk: {config.trunk}; a small detector's trunk has no settings but deformable")
        trunk = SmallTrunk(config.channels, config.trunk.deformable, config.offset_mode)
        super().__init__(config, name, trunk=trunk)


def _share_heads(detector: DenseDetector, *_: object) -> None:
    first, *others = detector.heads.values()
    for other in others:
        share(first, other)


def _confidence(cls: Tensor, iou: Tensor) -> Tensor:
    return (cls.sigmoid() * iou.sigmoid()).sqrt()


def _traces(cls: Tensor, iou: Tensor, boxes: Tensor, placement: Placement, found: Detection) -> Detection:
    """Scores and traces of the predictions given by ``index`` and ``labels`` of ``found``."""
    index = found["index"]
    logits, quality = cls[index, found["labels"]], iou[index]
    unclipped = placement.boxes_to_photo(boxes[index])
    return {"scores": _confidence(logits, quality), "logits": logits, "iou_logits": quality, "unclipped": unclipped}

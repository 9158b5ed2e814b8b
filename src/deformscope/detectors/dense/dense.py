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
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import (
    FeaturePyramidNetwork,
    batched_nms,
    box_iou,
    clip_boxes_to_image,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from ...capture.context_managers import placed
from ...errors import DeformscopeError
from ...fields.field import Placement
from ...ops.pointwise import make_pointwise
from ..batch import Batch
from ..detector import Detection, Detector
from . import box_losses, decode, trunk_config
from .assign import IGNORED, assign, level_ranges, share_of_positives
from .config import DenseConfig
from .heads import LevelHead, share
from .mask_losses import box_only_losses, made_losses, mask_logits
from .masks import MaskBranch, in_photo
from .predictions import Predictions
from .sizes import MULTIPLE, on_photo, own_sizes
from .trunk import SideWays, Trunk

STRIDES = trunk_config.STRIDES
"""Strides of the levels of a whole trunk, px."""
PAIRWISE_WARMUP = 1 / 9
"""Share of the training in which the masks' pairwise loss rises to its whole weight (BoxInst)."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DenseDetector(Detector):
    """A dense detector: trunk, pyramid and heads."""

    kind: ClassVar[str] = "dense"
    saved_dtype = torch.float16
    has_masks = False
    config: DenseConfig
    trunk: nn.Module

    def __init__(self, config: DenseConfig, name: str = "dense", *, classes: int | None = None) -> None:
        """``classes`` is the number of classes of the dense predictions; None for all."""
        super().__init__()
        self.name, self.config, self.class_names = name, config, config.class_names
        trunk = Trunk(config.trunk, config.offset_mode)
        self.trunk, self.torchvision_trunk = trunk, config.trunk.backbone
        self.strides = tuple(config.trunk.taps.values())
        """Of the levels."""
        if config.trunk.pyramid:
            self.fpn: nn.Module = FeaturePyramidNetwork(list(trunk.channels), config.channels)
        else:
            self.fpn = SideWays(trunk.channels, config.channels)
        classes = len(config.class_names) if classes is None else classes
        self.heads = nn.ModuleDict({f"stride{stride}": LevelHead(config, classes) for stride in self.strides})
        # Created last, so that the others have the same initial weights with and without masks.
        self.masks = (
            MaskBranch(config.mask_terms, config.channels, self.strides, config.mask_hidden)
            if config.mask_terms
            else None
        )
        self.sees_colours = bool(config.mask_terms)
        self.pairwise_share = 1.0
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
            resized = Image.fromarray(photo).resize(size[::-1], Image.Resampling.BILINEAR)
            images.append((torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255 - mean) / std)
            placements.append(Placement((height, width), (size[0] / height, size[1] / width)))
        shape = [-(-max(image.shape[axis] for image in images) // MULTIPLE) * MULTIPLE for axis in (1, 2)]
        batch = torch.zeros(len(images), 3, *shape)
        for slot, image in zip(batch, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image
        return batch, placements

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
        sizes = own_sizes(placements)
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
            box = clip_boxes_to_image(on_photo(boxes[keep], placement), placement.size)
            chosen = batched_nms(box, best[keep], label[keep], nms)[:max_detections]
            index = keep[chosen]
            own = {"boxes": box[chosen], "labels": label[index], "index": index}
            # The score of the ranking is used, since computing it again for a few cells may change its last bit.
            found.append(own | _traces(cls, iou, boxes, placement, own) | {"scores": best[index]})
            if self.masks is not None:
                with torch.no_grad():
                    logits = mask_logits(self.masks, predictions, len(found) - 1, index)
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
        kernels: list[decode.Kernels | None] = []
        weights: list[Tensor | None] = []
        for index, stride in enumerate(self.strides):
            head = self.heads[f"stride{stride}"]
            logits, raw, quality, offsets, weight = head(maps[f"stride{stride}"])
            _, _, h, w = logits.shape
            # A cell's receptive field is centred on pixel stride · index, whose centre is half a pixel further.
            y, x = (torch.arange(size, device=logits.device) * stride + 0.5 for size in (h, w))
            centre = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).view(-1, 2)
            raw = None if raw is None else raw.flatten(2).transpose(1, 2).float()
            kernel = decode.seen(offsets, stride) if offsets else None
            boxes.append(
                decode.boxes(self.config.decode, centre, stride, raw, kernel, getattr(head, "log_scale", None))
            )
            cls.append(logits.flatten(2).transpose(1, 2).float())
            iou.append(quality.flatten(1).float())
            centres.append(centre)
            level.append(torch.full((h * w,), index, device=logits.device))
            kernels.append(kernel)
            weights.append(None if weight is None else weight.flatten(2).transpose(1, 2))
        return Predictions(
            torch.cat(cls, 1),
            torch.cat(boxes, 1),
            torch.cat(iou, 1),
            torch.cat(centres),
            torch.cat(level),
            maps,
            None if self.masks is None else self.masks.prepare(maps, kernels, weights),
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
        if all("masks" in target for target in batch.targets):
            return losses | made_losses(self.masks, predictions, batch.targets)
        colours = batch.colours
        if colours is None:
            if batch.images is None:
                raise DeformscopeError("batch: feature maps without colours, which masks learn from; give colours too")
            colours = box_losses.colours_of(batch.images, MEAN, STD)
        return losses | box_only_losses(self.masks, predictions, batch.targets, colours, self.pairwise_share)

    def set_training_progress(self, done: float) -> None:
        """The pairwise loss is warmed up over the first ninth of the training."""
        self.pairwise_share = min(1.0, done / PAIRWISE_WARMUP)

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
    unclipped = on_photo(boxes[index], placement)
    return {"scores": _confidence(logits, quality), "logits": logits, "iou_logits": quality, "unclipped": unclipped}

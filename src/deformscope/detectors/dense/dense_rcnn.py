"""A Faster R-CNN (Ren et al., NeurIPS 2015) or Mask R-CNN (He et al., ICCV 2017) with the dense detector as its RPN.

Every cell inside an object proposes the object's box through deformable convolutions, whatever its class. torchvision's
RoI heads classify the proposals, refine their boxes and predict masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, nms as suppress

from ...fields.places import Placement
from ..detector import Detection
from ..rcnn.roi import MASK_GRID, paste
from .config import DenseRCNNConfig
from .dense import DenseDetector
from .predictions import Predictions

POOLED = 7
"""Side of the grid to which a region is pooled."""
CANDIDATES = 4
"""Best cells per proposal that are considered."""
OVERLAP = 0.7
"""IoU above which the lower-scoring of two proposals is dropped."""
MASK_LAYERS = 2
"""Convolutions of the mask head before its upsampling."""
IN_IGNORED = 0.5
"""Share of a proposal in an ignored box above which it has no loss."""
LOSSES = {"loss_classifier": "loss_roi_cls", "loss_box_reg": "loss_roi_box", "loss_mask": "loss_roi_mask"}
"""Losses of the second stage: torchvision's names, and ours."""


class DenseRCNN(DenseDetector):
    """Trunk, pyramid, deformable heads for proposals, and RoI heads."""

    kind = "dense_rcnn"
    config: DenseRCNNConfig

    def __init__(self, config: DenseRCNNConfig, name: str = "dense_rcnn") -> None:
        super().__init__(config, name, classes=1)
        self.has_masks = config.masks
        levels, outputs = [f"stride{stride}" for stride in self.strides], 1 + len(config.class_names)
        masks: dict[str, nn.Module] = {}
        if config.masks:
            masks = {
                "mask_roi_pool": MultiScaleRoIAlign(levels, MASK_GRID, sampling_ratio=2),
                "mask_head": MaskRCNNHeads(config.channels, (config.channels,) * MASK_LAYERS, dilation=1),
                "mask_predictor": MaskRCNNPredictor(config.channels, config.channels, outputs),
            }
        self.roi = RoIHeads(
            MultiScaleRoIAlign(levels, POOLED, sampling_ratio=2),
            TwoMLPHead(config.channels * POOLED**2, config.width),
            FastRCNNPredictor(config.width, outputs),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.rois_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            **masks,
        )

    def detect_alike(
        self, batch: Tensor, placements: Sequence[Placement], *, min_score: float, nms: float, max_detections: int
    ) -> list[Detection]:
        """Propose regions, classify them and refine their boxes; detections in photo px."""
        predictions = self.predict(self.trunk(batch.to(memory_format=torch.channels_last)))
        self.roi.score_thresh, self.roi.nms_thresh, self.roi.detections_per_img = min_score, nms, max_detections
        regions = self.roi(_wide(predictions), self.proposals(predictions), _shapes(predictions))[0]
        found = []
        for one, placement in zip(regions, placements, strict=True):
            corners = placement.boxes_to_photo(one["boxes"])
            boxes = clip_boxes_to_image(corners, placement.size)
            found.append({"boxes": boxes, "labels": one["labels"] - 1, "scores": one["scores"]})
            found[-1] |= {"logits": _log_odds(one["scores"]), "unclipped": corners, "region": one["boxes"].detach()}
            if self.config.masks:
                # Over the whole region: what lies outside the photo is not seen, but nothing is squeezed.
                found[-1]["masks"] = paste(one["masks"][:, 0].float(), corners, placement.size)
        return found

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        """Predictions of the second stage for the regions of the detections, for the same classes."""
        seen = self.predict(self.trunk(batch.to(memory_format=torch.channels_last)))
        regions, labels = found["region"], found["labels"] + 1
        pooled = self.roi.box_roi_pool(_wide(seen), [regions], _shapes(seen))
        logits, deltas = self.roi.box_predictor(self.roi.box_head(pooled))
        rows = torch.arange(len(labels), device=labels.device)
        scores = logits.softmax(dim=1)[rows, labels]
        boxes = self.roi.box_coder.decode(deltas, [regions])[rows, labels]
        return {"scores": scores, "logits": _log_odds(scores), "unclipped": placement.boxes_to_photo(boxes)}

    def proposals(self, predictions: Predictions) -> list[Tensor]:
        """Regions of each photo ``[r 4]``, xyxy in network px, best first, at most ``config.proposals``; detached."""
        confidence = (predictions.cls.squeeze(-1).sigmoid() * predictions.iou.sigmoid()).detach()
        found = []
        for boxes, scores, shape in zip(predictions.boxes.detach(), confidence, _shapes(predictions), strict=True):
            best = scores.topk(min(CANDIDATES * self.config.proposals, len(scores))).indices
            inside = clip_boxes_to_image(boxes[best], shape)
            wide = ((inside[:, 2:] - inside[:, :2]) > 1).all(dim=1)
            inside, ranked = inside[wide], scores[best][wide]
            found.append(inside[suppress(inside, ranked, OVERLAP)[: self.config.proposals]])
        return found

    def prediction_losses(self, predictions: Predictions, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses of the proposals, as of the dense detector with one class, and those of the RoI heads.

        With ``config.masks`` the targets also have ``masks`` (bool ``[t h w]``, network px).
        """
        of_any_class = [target | {"labels": torch.zeros_like(target["labels"])} for target in targets]
        losses = super().prediction_losses(predictions, of_any_class)
        regions, counted = [], []
        for boxes, target in zip(self.proposals(predictions), targets, strict=True):
            ignore = target.get("ignore", torch.zeros_like(target["labels"], dtype=torch.bool))
            regions.append(boxes[~_lies_in(boxes, target["boxes"][ignore])])
            counted.append({"boxes": target["boxes"][~ignore].float(), "labels": target["labels"][~ignore] + 1})
            if self.config.masks:
                counted[-1]["masks"] = target["masks"][~ignore]
        second = self.roi(_wide(predictions), regions, _shapes(predictions), counted)[1]
        return losses | {ours: second[name] for name, ours in LOSSES.items() if name in second}


def _log_odds(scores: Tensor) -> Tensor:
    """log p / (1 − p), clamped to what float32 can tell from 1."""
    return torch.logit(scores, eps=1e-7)


def _shapes(predictions: Predictions) -> list[tuple[int, int]]:
    """The input's size for each photo, network px."""
    name, finest = next(iter(predictions.pyramid.items()))
    stride = int(name.removeprefix("stride"))
    n, _, h, w = finest.shape
    return [(h * stride, w * stride)] * n


def _wide(predictions: Predictions) -> dict[str, Tensor]:
    """The pyramid in float32, from which regions are pooled."""
    return {name: value.float() for name, value in predictions.pyramid.items()}


def _lies_in(boxes: Tensor, ignored: Tensor) -> Tensor:
    """Whether more than :data:`IN_IGNORED` of a box's area lies in one of ``ignored`` ([r])."""
    if not len(ignored):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    low = torch.maximum(boxes[:, None, :2], ignored[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], ignored[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1).clamp(min=1e-6)
    return (common / area[:, None]).amax(dim=1) > IN_IGNORED

"""The heads of Faster and Mask R-CNN on a feature pyramid (Lin et al., CVPR 2017; He et al., ICCV 2017).

Labels are 0-based and the background is last; in torchvision it is first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import clip_boxes_to_image, roi_align

from ...fields.places import Placement
from .boxes import STRIDES, Sample, assign, decode, draw, encode, suppress
from .config import BOX_STDS, RCNNConfig

ROI_LEVELS = 4
"""Strides of P2..P5; P6 is only for proposals."""
FINEST_SIDE = 56
"""RoIs with sqrt(area) below twice this many px are pooled from P2."""
BOX_GRID = 7
POSITIVE_IOU = 0.5
SAMPLES, POSITIVE_SHARE = 512, 0.25
MASK_GRID = 14
"""Side of the RoI features; the masks of the head have twice as many cells per side."""
THRESHOLD = 0.5


def roi_levels(rois: Float[Tensor, "r 5"]) -> Int[Tensor, " r"]:
    """The pyramid level of each RoI (image, xyxy): floor(log2(sqrt(area) / 56 + 1e-6)), within 0..3."""
    width, height = rois[:, 3] - rois[:, 1], rois[:, 4] - rois[:, 2]
    level = ((width * height).sqrt() / FINEST_SIDE + 1e-6).log2().floor()
    return level.clamp(0, ROI_LEVELS - 1).long()


def pool(maps: Sequence[Tensor], rois: Float[Tensor, "r 5"], grid: int) -> Float[Tensor, "r c grid grid"]:
    """RoI features ``grid`` × ``grid``: RoIAlign with half-pixel alignment and one sample per cell of a bin.

    torchvision's MultiScaleRoIAlign has no alignment; its features are half a cell off.
    """
    levels = roi_levels(rois)
    features = maps[0].new_zeros(len(rois), maps[0].shape[1], grid, grid)
    for level in range(ROI_LEVELS):
        own = (levels == level).nonzero()[:, 0]
        pooled = roi_align(maps[level], rois[own], grid, 1 / STRIDES[level], sampling_ratio=0, aligned=True)
        features = features.index_copy(0, own, pooled)
    return features


def with_image(boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "r 5"]:
    """Boxes of several images as RoIs, with the index of the image first."""
    return torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])


def _log_odds(logits: Float[Tensor, "d k1"], labels: Int[Tensor, " d"]) -> Float[Tensor, " d"]:
    """log p / (1 − p) of one class of each row's softmax."""
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).logsumexp(dim=1)


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits (background last) and box deltas per class."""

    def __init__(self, config: RCNNConfig) -> None:
        super().__init__()
        self.dialect, self.classes = config.dialect, len(config.class_names)
        self.boxes_first = config.dialect.boxes_first and not config.mask
        # Without low-quality matches, Mask R-CNN's masks would miss the objects that no proposal fits.
        self.low_quality = POSITIVE_IOU if config.mask else None
        self.shared = TwoMLPHead(config.fpn_channels * BOX_GRID**2, config.head_channels)
        self.cls = nn.Linear(config.head_channels, self.classes + 1)
        self.box = nn.Linear(config.head_channels, 4 * self.classes)
        for layer, std in ((self.cls, 0.01), (self.box, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "r c 7 7"]) -> tuple[Float[Tensor, "r k1"], Float[Tensor, "r k4"]]:
        """RoI features to class logits and box deltas."""
        x = self.shared(features)
        return self.cls(x), self.box(x)

    def detections(
        self,
        proposals: Float[Tensor, "p 4"],
        logits: Float[Tensor, "p k1"],
        deltas: Float[Tensor, "p k4"],
        placement: Placement,
        min_score: float,
        nms: float,
        max_detections: int,
    ) -> tuple[dict[str, Tensor], Float[Tensor, "d 4"]]:
        """Detections of an image with their traces, best first, and their boxes in network px."""
        size = placement.network_size
        scale = logits.new_tensor([placement.scale[1], placement.scale[0]] * 2)
        confidence = logits.softmax(dim=1)[:, :-1]
        unclipped = decode(proposals, deltas, BOX_STDS, self.dialect.clamp_shrink)
        boxes = clip_boxes_to_image(unclipped, size)
        sound = (boxes.isfinite().all(dim=2) & confidence.isfinite()).all(dim=1)
        row, label = ((confidence > min_score) & sound[:, None]).nonzero().unbind(dim=1)
        box, confidence = boxes[row, label], confidence[row, label]
        if self.boxes_first:
            on_photo = box / scale
            kept = suppress(on_photo, confidence, label, nms, self.dialect.shifted_nms)[:max_detections]
            on_photo = on_photo[kept]
        else:
            kept = suppress(box, confidence, label, nms, self.dialect.shifted_nms)[:max_detections]
            on_photo = box[kept] / scale
        if self.dialect.clip_to_photo:
            on_photo = clip_boxes_to_image(on_photo, placement.size)
            solid = (on_photo[:, 2:] > on_photo[:, :2]).all(dim=1)
            on_photo, kept = on_photo[solid], kept[solid]
        row, label = row[kept], label[kept]
        found = {"boxes": on_photo, "labels": label, "scores": confidence[kept], "region": proposals[row].detach()}
        traces = {"logits": _log_odds(logits[row], label), "unclipped": unclipped[row, label] / scale}
        return found | traces, box[kept]

    def repredict(
        self,
        regions: Float[Tensor, "d 4"],
        labels: Int[Tensor, " d"],
        predictions: tuple[Tensor, Tensor],
        placement: Placement,
    ) -> dict[str, Tensor]:
        """``scores`` and traces of one class of each region, from predictions for exactly these regions."""
        logits, deltas = predictions
        rows = torch.arange(len(labels), device=labels.device)
        boxes = decode(regions, deltas, BOX_STDS, self.dialect.clamp_shrink)[rows, labels]
        scale = boxes.new_tensor([placement.scale[1], placement.scale[0]] * 2)
        scores = logits.softmax(dim=1)[rows, labels]
        return {"scores": scores, "logits": _log_odds(logits, labels), "unclipped": boxes / scale}

    def losses(
        self,
        logits: Float[Tensor, "r k1"],
        deltas: Float[Tensor, "r k4"],
        boxes: Float[Tensor, "r 4"],
        labels: Int[Tensor, " r"],
        goals: Float[Tensor, "r 4"],
    ) -> dict[str, Tensor]:
        """``loss_cls`` (cross-entropy) and ``loss_bbox`` (L1 of the labelled class's deltas), per sampled proposal.

        ``labels`` are −1 for background; ``goals`` are the boxes of the objects.
        """
        count = max(len(labels), 1)
        wanted = torch.where(labels < 0, self.classes, labels)
        positive = (labels >= 0).nonzero()[:, 0]
        own = deltas.view(len(deltas), -1, 4)[positive, labels[positive]]
        goal = encode(boxes[positive], goals[positive], BOX_STDS)
        return {
            "loss_cls": F.cross_entropy(logits, wanted, reduction="sum") / count,
            "loss_bbox": F.l1_loss(own, goal, reduction="sum") / count,
        }

    def sample(
        self, proposals: Float[Tensor, "p 4"], truth: Float[Tensor, "t 4"], given: Sample | None = None
    ) -> tuple[Float[Tensor, "s 4"], Int[Tensor, " s"]]:
        """The boxes of an image that have a loss, positives first, and the index of each one's object (−1 for none).

        The objects themselves precede the proposals; ``given`` holds indices into both, None to draw them.
        """
        matched = assign(proposals, truth, POSITIVE_IOU, POSITIVE_IOU, self.low_quality)
        matched = torch.cat([torch.arange(len(truth), device=matched.device), matched])
        chosen = given or draw(matched, SAMPLES, POSITIVE_SHARE)
        index = torch.cat([chosen.positive, chosen.negative])
        objects = matched[index].clone()
        objects[len(chosen.positive) :] = -1
        return torch.cat([truth, proposals])[index], objects


class MaskHead(nn.Module):
    """Convolutions, an upsampling, and a 28×28 mask per class."""

    def __init__(self, config: RCNNConfig) -> None:
        super().__init__()
        widths = (config.mask_channels,) * config.mask_convs
        self.convs = MaskRCNNHeads(config.fpn_channels, widths, dilation=1)
        self.predictor = MaskRCNNPredictor(config.mask_channels, config.mask_channels, len(config.class_names))

    def forward(self, features: Float[Tensor, "r c 14 14"]) -> Float[Tensor, "r k 28 28"]:
        """RoI features to mask logits."""
        return self.predictor(self.convs(features))

    def losses(
        self, logits: Float[Tensor, "r k 28 28"], labels: Int[Tensor, " r"], goals: Float[Tensor, "r 28 28"]
    ) -> dict[str, Tensor]:
        """``loss_mask``: mean binary cross-entropy of the labelled class's mask."""
        if not len(labels):
            return {"loss_mask": logits.sum() * 0}
        own = logits[torch.arange(len(labels), device=labels.device), labels]
        return {"loss_mask": F.binary_cross_entropy_with_logits(own, goals)}


def mask_goals(
    masks: Shaped[Tensor, "t h w"], boxes: Float[Tensor, "r 4"], objects: Int[Tensor, " r"]
) -> Float[Tensor, "r 28 28"]:
    """Targets of the mask head for ``boxes`` (network px): the part of each object's mask in the box, 0 or 1."""
    rois = torch.cat([torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)[:, None], boxes], dim=1)
    shown = masks[objects].to(boxes.dtype)[:, None]
    return (roi_align(shown, rois, 2 * MASK_GRID, sampling_ratio=0, aligned=True)[:, 0] >= THRESHOLD).to(boxes.dtype)


def paste(masks: Float[Tensor, "d m m"], boxes: Float[Tensor, "d 4"], size: tuple[int, int]) -> Bool[Tensor, "d h w"]:
    """Paste masks of probabilities into their boxes (photo px), as masks of a photo of ``size`` (h, w).

    A pixel is set where the mask, interpolated at its centre, is at least one half. (torchvision rounds the box to
    whole pixels first and is off by up to one.)
    """
    pasted = torch.zeros(len(boxes), *size, dtype=torch.bool, device=masks.device)
    for mask, box, out in zip(masks, boxes, pasted, strict=True):
        # One pixel of margin around the box; below one half, interpolation reaches no further than half a cell.
        left, top = (box[:2].floor() - 1).clamp(min=0).long().tolist()
        right, bottom = (box[2:].ceil() + 1).long().tolist()
        right, bottom = min(right, size[1]), min(bottom, size[0])
        if left >= right or top >= bottom:
            continue
        y = _unit(torch.arange(top, bottom, device=box.device), box[1], box[3])
        x = _unit(torch.arange(left, right, device=box.device), box[0], box[2])
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        values = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
        out[top:bottom, left:right] = values >= THRESHOLD
    return pasted


def _unit(pixels: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Pixel centres in coordinates of the box, −1 to 1; for a box without extent, its middle."""
    place = (pixels.to(first.dtype) + 0.5 - first) / (last - first) * 2 - 1
    return place.nan_to_num(0.0, 0.0, 0.0) if bool(last == first) else place


def object_masks(masks: Sequence[Tensor], boxes: Sequence[Tensor], objects: Sequence[Tensor]) -> Tensor:
    """The targets for the boxes of several images, concatenated."""
    return torch.cat([mask_goals(m, b, o) for m, b, o in zip(masks, boxes, objects, strict=True)])

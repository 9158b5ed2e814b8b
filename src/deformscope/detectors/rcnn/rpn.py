"""The region proposal network (Ren et al., NIPS 2015) with MMDetection's and Detectron2's conventions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import clip_boxes_to_image

from ...fields.places import Placement
from .boxes import ANCHOR_RATIOS, STRIDES, Sample, assign, decode, draw, encode, grid_anchors, suppress
from .config import RPN_STDS, Dialect, RCNNConfig

NMS_IOU = 0.7
PROPOSALS = 1000
"""Number of proposals kept; also the maximum per level before suppression, doubled in training."""
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
SAMPLES, POSITIVE_SHARE = 256, 0.5


@dataclass(frozen=True)
class Proposals:
    """One image's proposals, best first."""

    boxes: Float[Tensor, "p 4"]
    """xyxy, network px, clipped to the photo's part of the input."""
    scores: Float[Tensor, " p"]
    """Probabilities of an object, or their logits (Detectron2)."""


class RPN(nn.Module):
    """Predicts objectness and box deltas for every anchor of P2..P6."""

    def __init__(self, config: RCNNConfig) -> None:
        super().__init__()
        self.dialect: Dialect = config.dialect
        self.head = RPNHead(config.fpn_channels, len(ANCHOR_RATIOS))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness logits ``[n a h w]`` and deltas ``[n 4·a h w]`` per level."""
        logits, deltas = self.head(list(maps))
        return logits, deltas

    def propose(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        placements: Sequence[Placement],
        training: bool = False,
    ) -> list[Proposals]:
        """The proposals of each image, from the output of :meth:`forward`."""
        anchors = [grid_anchors(_size(m), stride, m.device) for m, stride in zip(logits, STRIDES, strict=True)]
        most = 2 * PROPOSALS if training else PROPOSALS
        found = []
        for image, placement in enumerate(placements):
            boxes, scores, levels = [], [], []
            for level, anchor in enumerate(anchors):
                score = _anchor_major(logits[level][image].detach(), 1)[:, 0]
                if not self.dialect.rank_by_logit:
                    score = score.sigmoid()
                score, order = score.sort(descending=True, stable=True)  # the same order of ties on every machine
                order = order[:most]
                delta = _anchor_major(deltas[level][image].detach(), 4)[order]
                boxes.append(decode(anchor[order], delta, RPN_STDS, self.dialect.clamp_shrink)[:, 0])
                scores.append(score[:most])
                levels.append(torch.full_like(order, level))
            found.append(self._best(torch.cat(boxes), torch.cat(scores), torch.cat(levels), placement.network_size))
        return found

    def _best(self, boxes: Tensor, scores: Tensor, levels: Tensor, size: tuple[int, int]) -> Proposals:
        boxes = clip_boxes_to_image(boxes, size)  # to the photo, not to its padding
        solid = ((boxes[:, 2:] > boxes[:, :2]).all(dim=1) & scores.isfinite()).nonzero()[:, 0]
        boxes, scores, levels = boxes[solid], scores[solid], levels[solid]
        kept = suppress(boxes, scores, levels, NMS_IOU, self.dialect.shifted_nms)[:PROPOSALS]
        return Proposals(boxes[kept], scores[kept])

    def losses(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        placements: Sequence[Placement],
        truth: Sequence[Float[Tensor, "_ 4"]],
        samples: Sequence[Sample] | None = None,
    ) -> dict[str, Tensor]:
        """``loss_rpn_cls`` (binary cross-entropy) and ``loss_rpn_bbox`` (L1), per sampled anchor.

        ``truth`` is the boxes of each image, network px. Only anchors on the photo's own padded area are trained;
        ``samples`` are indices into these, None to draw them.
        """
        sizes = [_size(m) for m in logits]
        anchors = torch.cat([grid_anchors(*level, logits[0].device) for level in zip(sizes, STRIDES, strict=True)])
        cls_loss, box_loss, count = logits[0].new_zeros(()), logits[0].new_zeros(()), 0
        for image, placement in enumerate(placements):
            inside = _on_photo(sizes, placement.padded_size(), anchors.device)
            own = anchors[inside]
            matched = assign(own, truth[image], POSITIVE_IOU, NEGATIVE_IOU, low_quality=NEGATIVE_IOU)
            sample = samples[image] if samples is not None else draw(matched, SAMPLES, POSITIVE_SHARE)
            logit = torch.cat([_anchor_major(m[image], 1) for m in logits])[inside, 0]
            delta = torch.cat([_anchor_major(m[image], 4) for m in deltas])[inside]
            chosen = torch.cat([sample.positive, sample.negative])
            wanted = torch.zeros_like(logit[chosen])
            wanted[: len(sample.positive)] = 1
            cls_loss = cls_loss + F.binary_cross_entropy_with_logits(logit[chosen], wanted, reduction="sum")
            goal = encode(own[sample.positive], truth[image][matched[sample.positive]], RPN_STDS)
            box_loss = box_loss + F.l1_loss(delta[sample.positive], goal, reduction="sum")
            count += len(chosen)
        return {"loss_rpn_cls": cls_loss / max(count, 1), "loss_rpn_bbox": box_loss / max(count, 1)}


def _size(m: Tensor) -> tuple[int, int]:
    return m.shape[-2], m.shape[-1]


def _anchor_major(m: Float[Tensor, "ac h w"], values: int) -> Float[Tensor, "p v"]:
    """Reorder channels to one row of ``values`` per anchor, in the order of :func:`grid_anchors`."""
    return m.permute(1, 2, 0).reshape(-1, values)


def _on_photo(sizes: Sequence[tuple[int, int]], photo: tuple[int, int], device: torch.device) -> Tensor:
    """Whether anchors belong to cells of the photo's padded area [p]; rounded up, so a cell may extend beyond."""
    inside = []
    for size, stride in zip(sizes, STRIDES, strict=True):
        rows, columns = (
            torch.arange(length, device=device) < -(-extent // stride)
            for length, extent in zip(size, photo, strict=True)
        )
        inside.append((rows[:, None] & columns).flatten().repeat_interleave(len(ANCHOR_RATIOS)))
    return torch.cat(inside)

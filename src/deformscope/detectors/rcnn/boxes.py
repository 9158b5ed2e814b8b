"""Boxes of the two-stage detectors: anchors, deltas, suppression, assignment, sampling; xyxy, continuous, in px.

torchvision rounds its anchors and infers their strides from the sizes of the maps, which changes detections. As in
MMDetection and Detectron2, neither is done here. Objects are assigned as by MMDetection's MaxIoUAssigner: a low-quality
match goes to the object that has no better candidate, later objects first (in torchvision to the candidate's own best
object).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

STRIDES = (4, 8, 16, 32, 64)
"""Strides of P2..P6, px. That of P6 is 64 for every height of the image; its cells need not tile the image."""
ANCHOR_SCALE = 8
ANCHOR_RATIOS = (0.5, 1.0, 2.0)
LARGEST_LOG_SCALE = abs(math.log(16 / 1000))
"""Bound of dw and dh: a box grows at most 62.5 times."""
SHIFTED_NMS_LIMIT = 10_000
BACKGROUND, IGNORED = -1, -2

Deltas = tuple[float, float, float, float]


def base_anchors(stride: int) -> Float[Tensor, "a 4"]:
    """The anchors of cell (0, 0): centred on px (0, 0), with area (8 · stride)² and height / width = .5, 1, 2."""
    root = torch.tensor(ANCHOR_RATIOS).sqrt()
    width, height = stride * (1 / root) * ANCHOR_SCALE, stride * root * ANCHOR_SCALE
    return torch.stack([-0.5 * width, -0.5 * height, 0.5 * width, 0.5 * height], dim=-1)


def grid_anchors(size: tuple[int, int], stride: int, device: torch.device | str = "cpu") -> Float[Tensor, "p 4"]:
    """The anchors of a map of ``size`` (h, w), row-major by cell, with the anchors of a cell together."""
    y, x = (torch.arange(length, device=device, dtype=torch.float32) * stride for length in size)
    y, x = torch.meshgrid(y, x, indexing="ij")
    shift = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (base_anchors(stride).to(device) + shift).view(-1, 4)


def encode(boxes: Float[Tensor, "n 4"], targets: Float[Tensor, "n 4"], stds: Deltas) -> Float[Tensor, "n 4"]:
    """Deltas (dx, dy, dw, dh), divided by ``stds``, from ``boxes`` to ``targets``."""
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centre, aim = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (targets[:, :2] + targets[:, 2:]) * 0.5
    deltas = torch.cat([(aim - centre) / size, (wanted / size).log()], dim=1)
    return deltas / deltas.new_tensor(stds)


def decode(
    boxes: Float[Tensor, "n 4"], deltas: Float[Tensor, "n c4"], stds: Deltas, clamp_shrink: bool
) -> Float[Tensor, "n c 4"]:
    """Apply ``deltas`` (c boxes of four per row, in units of ``stds``) to ``boxes``.

    dw and dh are clamped to ±log(1000/16); with ``clamp_shrink=False`` only from above, as in Detectron2.
    """
    deltas = deltas.view(len(deltas), -1, 4) * deltas.new_tensor(stds)
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = ((boxes[:, :2] + boxes[:, 2:]) * 0.5)[:, None] + size * deltas[..., :2]
    growth = deltas[..., 2:].clamp(min=-LARGEST_LOG_SCALE if clamp_shrink else None, max=LARGEST_LOG_SCALE)
    half = size * growth.exp() * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def suppress(
    boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], groups: Int[Tensor, " n"], threshold: float, shifted: bool
) -> Int[Tensor, " kept"]:
    """Indices that are kept by non-maximum suppression within each group, best first.

    ``shifted`` shifts the groups apart and suppresses once, as MMDetection does below 10,000 boxes. The shift costs
    digits of the coordinates, which can decide pairs near the threshold, so it is needed to reproduce detections.
    """
    if not shifted or len(boxes) >= SHIFTED_NMS_LIMIT or not len(boxes):
        return batched_nms(boxes, scores, groups, threshold)
    return nms(boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None], scores, threshold)


@dataclass(frozen=True)
class Sample:
    """The sampled candidates of an image, as indices into its candidates."""

    positive: Int[Tensor, " p"]
    negative: Int[Tensor, " q"]


def assign(
    candidates: Float[Tensor, "n 4"],
    truth: Float[Tensor, "t 4"],
    positive: float,
    negative: float,
    low_quality: float | None = None,
) -> Int[Tensor, " n"]:
    """Index of each candidate's object; −1 for background (best IoU below ``negative``), −2 for neither.

    An IoU of at least ``positive`` assigns the best object. With ``low_quality``, every object whose best IoU reaches
    it also takes all candidates with exactly that IoU.
    """
    if not len(truth) or not len(candidates):
        return torch.full((len(candidates),), BACKGROUND, device=candidates.device)
    iou = box_iou(truth, candidates).nan_to_num()
    best, index = iou.max(dim=0)
    matched = torch.where(best >= positive, index, torch.where(best < negative, BACKGROUND, IGNORED))
    if low_quality is not None:
        for i, top in enumerate(iou.max(dim=1).values):
            if top >= low_quality:
                matched[iou[i] == top] = i
    return matched


def draw(matched: Int[Tensor, " n"], count: int, share: float, generator: torch.Generator | None = None) -> Sample:
    """Sample up to ``count`` candidates, at most ``share`` of them positive; the rest are negative."""
    positive = _some(torch.nonzero(matched >= 0)[:, 0], int(count * share), generator)
    negative = _some(torch.nonzero(matched == BACKGROUND)[:, 0], count - len(positive), generator)
    return Sample(positive, negative)


def _some(indices: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    if len(indices) <= most:
        return indices
    order = torch.randperm(len(indices), generator=generator)[:most]
    return indices[order.to(indices.device)]

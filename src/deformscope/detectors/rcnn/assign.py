"""Assign objects to anchors and proposals, and sample those that have a loss.

As MMDetection's MaxIoUAssigner and RandomSampler. torchvision's Matcher gives a low-quality match to the candidate's
own best object; MMDetection gives it to the object that has no better candidate, later objects first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND, IGNORED = -1, -2


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

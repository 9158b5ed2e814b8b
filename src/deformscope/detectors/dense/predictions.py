"""Dense predictions of all levels together, and which object each cell learns: the smallest of its level's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..detector import mean_of_processes, processes

if TYPE_CHECKING:
    from .masks import MaskInputs

LEVEL_RANGES = ((0.0, 64.0), (48.0, 140.0), (110.0, float("inf")))
"""Ranges of sqrt(box area), network px, of each level's positive cells. They overlap."""
BACKGROUND, IGNORED = -1, -2


@dataclass(frozen=True)
class Predictions:
    """Dense predictions of all levels, flattened over their p cells."""

    cls: Tensor
    """Class logits [n p classes]."""
    boxes: Tensor
    """xyxy, network px [n p 4]."""
    iou: Tensor
    """IoU logits [n p]."""
    centres: Tensor
    """Cell centres (x, y), network px [p 2]."""
    level: Tensor
    """Level index of each cell [p]."""
    pyramid: dict[str, Tensor]
    """The feature maps that the heads read, by name [n c h w]."""
    masks: MaskInputs | None = None
    """What masks are made of, where there are any."""


def level_ranges(strides: Sequence[int]) -> tuple[tuple[float, float], ...]:
    """The ranges of the levels with these strides; the outermost levels of fewer than three get all other sizes too."""
    chosen = [LEVEL_RANGES[(8, 16, 32).index(stride)] for stride in strides]
    chosen[0] = (0.0, chosen[0][1])
    chosen[-1] = (chosen[-1][0], float("inf"))
    return tuple(chosen)


def assign(
    centres: Tensor, level: Tensor, target: dict[str, Tensor], ranges: Sequence[tuple[float, float]] = LEVEL_RANGES
) -> tuple[Tensor, Tensor, Tensor]:
    """Label ([p]; −1 background, −2 ignored), box ([p 4]) and object ([p]) of each cell: the smallest box of its level
    around it."""
    boxes, labels = target["boxes"], target["labels"]
    if not len(boxes):
        return level.new_full(level.shape, BACKGROUND), centres.new_zeros(len(centres), 4), torch.zeros_like(level)
    x, y = centres[:, None].unbind(-1)
    inside = (x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low, high = centres.new_tensor(ranges)[level].unbind(-1)
    size = area.sqrt()
    fits = inside & (size >= low[:, None]) & (size < high[:, None])
    smallest, index = torch.where(fits, area, torch.inf).min(dim=1)
    if "ignore" in target:
        labels = torch.where(target["ignore"], IGNORED, labels)
    return torch.where(smallest.isfinite(), labels[index], BACKGROUND), boxes[index], index


def share_of_positives(inside: Tensor) -> Tensor:
    """Number of cells that learn a box, at least 1; with several processes, the mean over them.

    Gradients are averaged over processes, so each divides by the mean number of cells, not by its own.
    """
    return mean_of_processes(inside.sum().float()).clamp(min=1 / processes())

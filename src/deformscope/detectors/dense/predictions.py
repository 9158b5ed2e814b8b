"""What the heads of a dense detector predict, of all levels together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .masks import MaskInputs


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

"""The mask head of Mask R-CNN (He et al., ICCV 2017), and masks in the photo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from .config import RCNNConfig

MASK_GRID = 14
"""Side of the RoI features; the masks of the head have twice as many cells per side."""
THRESHOLD = 0.5


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

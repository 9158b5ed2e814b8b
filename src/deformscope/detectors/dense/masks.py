"""Masks of the dense detector, learned from masks that GrabCut makes of the annotated boxes.

The logit of detection k at place p is the sum of two terms:

| term | logit |
|---|---|
| unary | u(p), 1×1 convolutions on the pyramid, or hidden 3×3 ones, the same for all detections |
| dynamic | a layer whose weights each detection predicts, on features and p − p0 |

``dynamic`` is CondInst's head (Tian et al., ECCV 2020), made small. A mask ends at its detection's box. Cell (y, x)
of a map lies at stride·(y, x) + ½ px of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...fields.places import Placement
from .predictions import Predictions, assign, level_ranges, share_of_positives

FEATURES, HIDDEN = 8, 8
"""Channels of the dynamic layer's features and of what it computes of them and of p − p0."""
PARAMETERS = (FEATURES + 2) * HIDDEN + HIDDEN + HIDDEN + 1
"""What a detection predicts for the dynamic layer."""
STRIDE = 4
"""Of the maps on which masks are learned, px."""
MOST_MASKS = 32
"""Largest number of objects of a batch whose masks have a loss, drawn at random."""


@dataclass(frozen=True)
class MaskInputs:
    """What the masks of a batch of n images are made of, besides the dense predictions."""

    maps: Float[Tensor, "n c h w"]
    """At the first stride: u, and the features of the dynamic layer."""
    weights: Float[Tensor, "n p m"]
    """Of the dynamic layer."""


class MaskBranch(nn.Module):
    """The maps of which masks are made."""

    def __init__(self, channels: int, strides: Sequence[int], hidden: int = 0) -> None:
        super().__init__()
        self.strides, count = tuple(strides), 1 + FEATURES
        self.maps = nn.ModuleList(nn.Conv2d(channels, hidden or count, 1) for _ in strides)
        self.after = nn.Sequential()
        if hidden:
            for _ in range(2):
                conv = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
                self.after.extend([nn.ReLU(), conv, nn.GroupNorm(hidden // 8, hidden)])
            self.after.extend([nn.ReLU(), nn.Conv2d(hidden, count, 1)])
        for layer in self.maps if not hidden else ():
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.normal_(layer.weight, std=channels**-0.5)
            nn.init.zeros_(layer.bias)

    def prepare(self, pyramid: dict[str, Tensor], weights: Sequence[Float[Tensor, "n _ m"]]) -> MaskInputs:
        """What is the same for all detections, of the pyramid's levels and the cells' dynamic weights."""
        first, levels = self.strides[0], list(pyramid.values())
        height, width = levels[0].shape[2:]
        parts = [
            upsampled(_wide(layer(level)), stride // first)[..., :height, :width]
            for layer, level, stride in zip(self.maps, levels, self.strides, strict=True)
        ]
        return MaskInputs(self.after(torch.stack(parts).sum(dim=0)), _wide(torch.cat(list(weights), 1)))

    def logits(self, seen: Predictions, image: int, index: Int[Tensor, " k"]) -> Float[Tensor, "k h w"]:
        """Of the detections made in the cells ``index`` of an image, at the first stride."""
        assert seen.masks is not None
        maps, centres = seen.masks.maps[image], seen.centres[index]
        y, x = (torch.arange(size, device=centres.device) * self.strides[0] + 0.5 for size in maps.shape[1:])
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        scales = torch.tensor(self.strides, device=centres.device)[seen.level[index]] * 8.0
        apart = (places - centres[:, None, None]) / scales[:, None, None, None]
        unary = maps.new_zeros(len(index), *maps.shape[1:]) + maps[0]
        return unary + dynamic(maps[-FEATURES:], apart, seen.masks.weights[image, index])

    def losses(self, seen: Predictions, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """``loss_made``: of a mask of each object, at most :data:`MOST_MASKS`, with the ``masks`` of the targets, in
        its box; ``loss_outside``: of the unary term, which is background in no box.

        The mask is that of one of the cells that learn the object's box, drawn at random.
        """
        ranges, first = level_ranges(self.strides), self.strides[0]
        logits, boxes, places = [], [], []
        for image, target in enumerate(targets):
            label, box, of = assign(seen.centres, seen.level, target, ranges)
            luck = torch.where(label >= 0, torch.rand(len(label), device=label.device), -1.0)
            cells = [torch.where(of == number, luck, -1.0).argmax() for number in of[label >= 0].unique()]
            index = torch.stack(cells) if cells else of[:0]
            logits.append(self.logits(seen, image, index))
            places += [(image, number) for number in of[index].tolist()]
            boxes.append(box[index])
        whole = torch.cat(logits)
        chosen = torch.randperm(len(whole), device=whole.device)[:MOST_MASKS]
        fine = upsampled(whole[chosen][None], first // STRIDE)[0]
        masks = [pooled(target["masks"], fine.shape[1:]) for target in targets]
        wanted = [masks[image][number] for image, number in (places[one] for one in chosen.tolist())]
        made = given(fine, torch.stack(wanted), torch.cat(boxes)[chosen]) if wanted else fine.new_zeros(0)
        count = share_of_positives(torch.ones(len(fine), dtype=torch.bool, device=fine.device))
        assert seen.masks is not None
        # Every parameter has a gradient, for which DistributedDataParallel waits.
        none = torch.stack([p.sum() for p in self.parameters()]).sum() * 0 + seen.cls.sum() * 0
        own = [target["boxes"].float() for target in targets]
        return {"loss_made": made.sum() / count + none, "loss_outside": outside(seen.masks.maps[:, 0], own, first)}


def _wide(values: Tensor) -> Tensor:
    """Half precision as float32, in which masks are computed."""
    return values if values.dtype == torch.float64 else values.float()


def upsampled(maps: Float[Tensor, "n c h w"], factor: int) -> Float[Tensor, "n c _ _"]:
    """Bilinear interpolation between cells of which the first lies where it lay; beyond the last one constant.

    Cell i of a map lies at stride·i + ½ px, so cell ``factor``·i of the result is cell i of ``maps``.
    """
    if factor == 1:
        return maps
    height, width = maps.shape[2:]
    if not maps.numel():
        return maps.new_zeros(*maps.shape[:2], factor * height, factor * width)
    padded = F.pad(maps, (0, 1, 0, 1), mode="replicate")
    size = (factor * height + 1, factor * width + 1)
    return F.interpolate(padded, size=size, mode="bilinear", align_corners=True)[..., :-1, :-1]


def dynamic(
    features: Float[Tensor, "c h w"], apart: Float[Tensor, "k h w 2"], weights: Float[Tensor, "k m"]
) -> Float[Tensor, "k h w"]:
    """A hidden layer with ReLU and an output layer, with each detection's own weights, on features and p − p0."""
    hidden, bias, out, last = weights.split([(FEATURES + 2) * HIDDEN, HIDDEN, HIDDEN, 1], dim=1)
    hidden = hidden.unflatten(1, (HIDDEN, FEATURES + 2))
    common = torch.einsum("kdc,chw->kdhw", hidden[..., :FEATURES], features)
    x = common + torch.einsum("kdc,khwc->kdhw", hidden[..., FEATURES:], apart) + bias[..., None, None]
    return torch.einsum("kd,kdhw->khw", out, F.relu(x)) + last[..., None]


def in_photo(
    logits: Float[Tensor, "d h w"], boxes: Float[Tensor, "d 4"], placement: Placement, stride: int
) -> Bool[Tensor, "d height width"]:
    """Masks of a photo: where the logit, interpolated at a pixel's centre, is above zero, in the ``boxes`` (photo
    px)."""
    height, width = placement.size
    masks = torch.zeros(len(logits), height, width, dtype=torch.bool, device=logits.device)
    h, w = logits.shape[1:]
    down, across = placement.scale
    for logit, box, mask in zip(logits, boxes.tolist(), masks, strict=True):
        left, top = max(0, math.ceil(box[0] - 0.5)), max(0, math.ceil(box[1] - 0.5))
        right, bottom = min(width, math.ceil(box[2] - 0.5)), min(height, math.ceil(box[3] - 0.5))
        if left >= right or top >= bottom:
            continue
        y = ((torch.arange(top, bottom, device=logits.device) + 0.5) * down - 0.5) / stride
        x = ((torch.arange(left, right, device=logits.device) + 0.5) * across - 0.5) / stride
        y, x = (2 * y / max(h - 1, 1) - 1).to(logit.dtype), (2 * x / max(w - 1, 1) - 1).to(logit.dtype)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        values = F.grid_sample(logit[None, None], grid[None], padding_mode="border", align_corners=True)
        mask[top:bottom, left:right] = values[0, 0] > 0
    return masks


def outside(logits: Float[Tensor, "n h w"], boxes: Sequence[Float[Tensor, "_ 4"]], stride: int) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of the cells in no box with background; zero without such cells.

    ``boxes`` are those of each photo, ignored ones too, xyxy px.
    """
    free = torch.stack([~cells_inside(own, logits.shape[1:], stride).any(dim=0) for own in boxes])
    return (F.softplus(logits) * free).sum() / free.sum().clamp(min=1)


def given(
    logits: Float[Tensor, "k h w"], masks: Float[Tensor, "k h w"], boxes: Float[Tensor, "k 4"]
) -> Float[Tensor, " k"]:
    """Binary cross-entropy and Dice loss of each mask with ``masks`` (0 to 1) in its box; zero without a cell there."""
    inside = cells_inside(boxes, logits.shape[1:]).to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * inside
    entropy = entropy.flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1).clamp(min=1)
    found, true = (logits.sigmoid() * inside).flatten(1), (masks * inside).flatten(1)
    dice = 1 - 2 * (found * true).sum(dim=1) / (found.square().sum(dim=1) + true.square().sum(dim=1) + 1e-5)
    return entropy + torch.where(inside.flatten(1).any(dim=1), dice, 0.0)


def pooled(masks: Bool[Tensor, "t height width"], size: Sequence[int]) -> Float[Tensor, "t h w"]:
    """The share of a mask around every cell of a map of ``size`` (h, w); an image that is smaller than its batch has no
    mask beyond its own border."""
    down, right = (STRIDE * length - own for length, own in zip(size, masks.shape[1:], strict=True))
    padded = F.pad(masks[:, None].float(), (0, right, 0, down))
    # Windows around STRIDE·i, of which the last reaches beyond the image.
    return F.avg_pool2d(padded, STRIDE, STRIDE, STRIDE // 2, count_include_pad=False)[:, 0, : size[0], : size[1]]


def cells_inside(boxes: Float[Tensor, "k 4"], size: Sequence[int], stride: int = STRIDE) -> Bool[Tensor, "k h w"]:
    """Which cells of a map of ``size`` (h, w) lie in each box, xyxy px."""
    y, x = (torch.arange(length, device=boxes.device) * stride + 0.5 for length in size)
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None]

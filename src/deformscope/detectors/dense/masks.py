"""Masks out of offsets, for the dense detector: cells that point to the same place belong together.

The paper names as future work the "utilization of the two properties of the offset fields in the prediction branches of
bounding box and mask" (Zhang et al., ICPRAM 2021, Section 5). The logit of detection k at place p is a sum of terms:

| term | logit |
|---|---|
| vote | α·(1 − |p + s·d_f(p) − ĉ_k|² / (σ·b̂_k)²), with ĉ_k = p0 + s·d_f and b̂_k = s·e/2 of the detection's own kernel |
| box | the same with ĉ_k and b̂_k the centre and half sides of its predicted box; instead of ``vote`` |
| divergence | β·(−div d_f(p)) |
| unary | u(p), 1×1 convolutions on the pyramid, or hidden 3×3 ones, the same for all detections |
| dynamic | a comparator without offsets: a layer whose weights each detection predicts, on features and p − p0 |

d_f is that of the detection's level, of stacked layers the composed one, interpolated at stride 8. ``vote`` is a
Gaussian vote as in SpatialEmbedding (Neven et al., CVPR 2019), with d_f as the vote and d_k as its width; without
offsets it is an ellipse. ``dynamic`` is CondInst's head (Tian et al., ECCV 2020), made small. A mask ends at the box of
its detection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...fields.field import Placement
from ...fields.viewpoint import divergence
from .decode import Kernels

MaskTerm = Literal["vote", "box", "divergence", "unary", "dynamic"]
MASK_TERMS: tuple[MaskTerm, ...] = get_args(MaskTerm)
STANDARD: tuple[MaskTerm, ...] = ("vote", "divergence", "unary")
OF_OFFSETS = ("vote", "box", "divergence")
"""Terms for which the heads give their offsets."""
FEATURES, HIDDEN = 8, 8
"""Channels of the dynamic layer's features and of what it computes of them and of p − p0."""
PARAMETERS = (FEATURES + 2) * HIDDEN + HIDDEN + HIDDEN + 1
"""What a detection predicts for the dynamic layer."""


@dataclass(frozen=True)
class MaskInputs:
    """What the masks of a batch of n images are made of, besides the dense predictions."""

    maps: Float[Tensor, "n c h w"]
    """At the first stride: u, and the features of the dynamic layer."""
    shifts: tuple[Float[Tensor, "n 2 _ _"], ...]
    """s·d_f of each level, (x, y) px; none without offsets."""
    divergences: tuple[Float[Tensor, "n 1 _ _"], ...]
    """Of each level's d_f."""
    shift: Float[Tensor, "n p 2"] | None
    """s·d_f of each cell, (x, y) px."""
    half: Float[Tensor, "n p 2"] | None
    """s·e/2 of each cell, (x, y) px."""
    weights: Float[Tensor, "n p m"] | None
    """Of the dynamic layer."""


class MaskBranch(nn.Module):
    """The learned parts of the terms."""

    def __init__(self, terms: Sequence[str], channels: int, strides: Sequence[int], hidden: int = 0) -> None:
        super().__init__()
        self.terms, self.strides = tuple(terms), tuple(strides)
        count = int("unary" in terms) + FEATURES * int("dynamic" in terms)
        self.maps = nn.ModuleList(nn.Conv2d(channels, hidden or count, 1) for _ in strides if count)
        self.after = nn.Sequential()
        if hidden and count:
            for _ in range(2):
                conv = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
                self.after.extend([nn.ReLU(), conv, nn.GroupNorm(hidden // 8, hidden)])
            self.after.extend([nn.ReLU(), nn.Conv2d(hidden, count, 1)])
        for layer in self.maps if not hidden else ():
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01 if "dynamic" not in terms else channels**-0.5)
            nn.init.zeros_(layer.bias)
        if self.votes:
            # The box's half sides are b̂ themselves; a kernel's extent begins as the dense boxes do, see decode.py.
            self.log_width = nn.Parameter(torch.full((2,), 0.0 if "box" in terms else 1.0))
            self.log_slope = nn.Parameter(torch.tensor(math.log(2.0)))
        if "divergence" in terms:
            self.inflow = nn.Parameter(torch.tensor(1.0))

    @property
    def votes(self) -> bool:
        """Has the first term."""
        return "vote" in self.terms or "box" in self.terms

    @property
    def of_detections(self) -> bool:
        """Detections of an image have masks of their own, not only their own part of one."""
        return self.terms != ("unary",)

    def prepare(
        self,
        pyramid: dict[str, Tensor],
        kernels: Sequence[Kernels | None],
        weights: Sequence[Tensor | None],
    ) -> MaskInputs:
        """What is the same for all detections, of the pyramid's levels, their kernels and dynamic weights."""
        first, levels = self.strides[0], list(pyramid.values())
        n, _, height, width = levels[0].shape
        maps = _wide(levels[0].new_zeros(n, 0, height, width))
        if len(self.maps):
            parts = [
                upsampled(_wide(layer(level)), stride // first)[..., :height, :width]
                for layer, level, stride in zip(self.maps, levels, self.strides, strict=True)
            ]
            maps = self.after(torch.stack(parts).sum(dim=0))
        shifts, divergences = [], []
        seen = [kernel for kernel in kernels if kernel is not None]
        if seen:
            for kernel, level, stride in zip(seen, levels, self.strides, strict=True):
                shift = _wide(kernel.shift.unflatten(1, level.shape[2:]))
                shifts.append(shift.movedim(-1, 1))
                divergences.append(divergence(shift.flip(-1) / stride)[:, None])
        return MaskInputs(
            maps,
            tuple(shifts),
            tuple(divergences),
            _wide(torch.cat([kernel.shift for kernel in seen], 1)) if seen else None,
            _wide(torch.cat([kernel.half for kernel in seen], 1)) if seen else None,
            _wide(torch.cat([one for one in weights if one is not None], 1)) if "dynamic" in self.terms else None,
        )

    def logits(
        self,
        inputs: MaskInputs,
        image: int,
        index: Int[Tensor, " k"],
        level: Int[Tensor, " k"],
        centres: Float[Tensor, "k 2"],
        boxes: Float[Tensor, "k 4"],
    ) -> Float[Tensor, "k h w"]:
        """Mask logits at the first stride, whose cell (y, x) lies at stride·(y, x) + ½ px.

        Of the detections made in the cells ``index`` of an image, with these levels, ``centres`` of cells (x, y) px and
        predicted ``boxes``.
        """
        first = self.strides[0]
        _, _, height, width = inputs.maps.shape
        y, x = (torch.arange(size, device=centres.device) * first + 0.5 for size in (height, width))
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        logits = inputs.maps.new_zeros(len(index), height, width)
        if "unary" in self.terms:
            logits = logits + inputs.maps[image, 0]
        if "dynamic" in self.terms:
            assert inputs.weights is not None
            scales = torch.tensor(self.strides, device=centres.device)[level] * 8.0
            apart = (places - centres[:, None, None]) / scales[:, None, None, None]
            logits = logits + dynamic(inputs.maps[image, -FEATURES:], apart, inputs.weights[image, index])
        for number, stride in enumerate(self.strides):
            own = level == number
            if not inputs.shifts or not bool(own.any()):
                continue
            term = logits.new_zeros(int(own.sum()), height, width)
            if self.votes:
                assert inputs.shift is not None and inputs.half is not None
                shift = upsampled(inputs.shifts[number][image][None], stride // first)[0, :, :height, :width]
                if "box" in self.terms:
                    corners = boxes[own].detach()
                    middle, half = (corners[:, :2] + corners[:, 2:]) / 2, (corners[:, 2:] - corners[:, :2]) / 2
                    half = half.clamp(min=1.0)
                else:
                    cells = index[own]
                    middle, half = centres[own] + inputs.shift[image, cells], inputs.half[image, cells]
                apart = places + shift.movedim(0, -1) - middle[:, None, None]
                far = (apart / (half * self.log_width.exp())[:, None, None]).square().sum(dim=-1)
                term = term + self.log_slope.exp() * (1 - far)
            if "divergence" in self.terms:
                sink = upsampled(inputs.divergences[number][image][None], stride // first)[0, 0, :height, :width]
                term = term - self.inflow * sink
            logits = logits.index_add(0, own.nonzero()[:, 0], term)
        return logits


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

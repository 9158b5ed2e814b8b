"""Losses of masks that need boxes alone: BoxInst's projection and pairwise losses (Tian et al., CVPR 2021).

A third one is for what is the same for all masks of a photo: what lies in no box is background. Where a vote already
says so, BoxInst's losses teach nothing about background there, and the masks filled their boxes.

Maps have a cell every :data:`STRIDE` px; cell (y, x) lies at STRIDE·(y, x) + ½ px of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

STRIDE = 4
DILATION = 2
"""Distance of a cell's eight neighbours, in cells."""
SIMILAR = 0.3
"""Pairs with exp(−|ΔLAB|/2) from here on are taken for parts of one thing."""
NEIGHBOURS = ((0, DILATION), (DILATION, 0), (DILATION, DILATION), (DILATION, -DILATION))
"""Half of the eight: a pair is seen from one of its cells."""


def losses(
    logits: Float[Tensor, "k h w"],
    boxes: Float[Tensor, "k 4"],
    colours: Float[Tensor, "n 3 h w"],
    image: Int[Tensor, " k"],
) -> tuple[Float[Tensor, " k"], Float[Tensor, ""]]:
    """The projection loss of each mask, and the mean pairwise loss over all pairs of similar colours.

    ``boxes`` are xyxy px. A mask whose box has no cell has no loss.
    """
    inside = cells_inside(boxes, logits.shape[1:])
    seen = inside.flatten(1).any(dim=1)
    total, pairs = pairwise(logits, inside, colours, image)
    return torch.where(seen, projection(logits, inside), 0.0), total / pairs.clamp(min=1)


def outside(logits: Float[Tensor, "n h w"], boxes: Sequence[Float[Tensor, "_ 4"]], stride: int) -> Float[Tensor, ""]:
    """Mean binary cross-entropy of the cells in no box with background; zero without such cells.

    ``boxes`` are those of each photo, ignored ones too, xyxy px; cell (y, x) lies at ``stride``·(y, x) + ½ px.
    """
    free = [~cells_inside(own, logits.shape[1:], stride).any(dim=0) for own in boxes]
    seen = torch.stack(free)
    return (F.softplus(logits) * seen).sum() / seen.sum().clamp(min=1)


def made(
    logits: Float[Tensor, "k h w"], masks: Float[Tensor, "k h w"], boxes: Float[Tensor, "k 4"]
) -> Float[Tensor, " k"]:
    """Binary cross-entropy and Dice loss of each mask with ``masks`` (0 to 1) in its box, for masks made of boxes or
    annotated; zero without a cell there."""
    inside = cells_inside(boxes, logits.shape[1:]).to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, masks, reduction="none") * inside
    entropy = entropy.flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1).clamp(min=1)
    dice = _dice((logits.sigmoid() * inside).flatten(1), (masks * inside).flatten(1))
    return entropy + torch.where(inside.flatten(1).any(dim=1), dice, 0.0)


def pooled(masks: Bool[Tensor, "t height width"], size: Sequence[int]) -> Float[Tensor, "t h w"]:
    """The share of a mask around every cell of a map of ``size`` (h, w), as :func:`colours_of` sees it; an image that
    is smaller than its batch has no mask beyond its own border."""
    down, right = (STRIDE * length - own for length, own in zip(size, masks.shape[1:], strict=True))
    padded = F.pad(masks[:, None].float(), (0, right, 0, down))
    return F.avg_pool2d(padded, STRIDE, STRIDE, STRIDE // 2, count_include_pad=False)[:, 0, : size[0], : size[1]]


def projection(logits: Float[Tensor, "k h w"], inside: Bool[Tensor, "k h w"]) -> Float[Tensor, " k"]:
    """Dice losses of the masks' row and column maxima with those of the boxes, summed for each of the k masks."""
    scores, boxes = logits.sigmoid(), inside.to(logits.dtype)
    return sum((_dice(scores.amax(dim=d), boxes.amax(dim=d)) for d in (1, 2)), start=logits.new_zeros(len(logits)))


def pairwise(
    logits: Float[Tensor, "k h w"],
    inside: Bool[Tensor, "k h w"],
    colours: Float[Tensor, "n 3 h w"],
    image: Int[Tensor, " k"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Sum of −log(m_i·m_j + (1 − m_i)(1 − m_j)) over the pairs of similar colours, and the number of the pairs.

    A pair counts for each of its cells that lies in the box; ``colours`` are LAB, ``image`` is that of each mask.
    """
    total, count = logits.new_zeros(()), logits.new_zeros(())
    own, other = F.logsigmoid(logits), F.logsigmoid(-logits)
    for down, across in NEIGHBOURS:
        a, b = _halves(logits.shape[-2:], down, across)
        near = (colours[..., a[0], a[1]] - colours[..., b[0], b[1]]).norm(dim=1).mul(-0.5).exp() >= SIMILAR
        cells = inside[:, a[0], a[1]].to(logits.dtype) + inside[:, b[0], b[1]].to(logits.dtype)
        weight = near[image] * cells
        same = torch.logaddexp(own[:, a[0], a[1]] + own[:, b[0], b[1]], other[:, a[0], a[1]] + other[:, b[0], b[1]])
        total, count = total - (same * weight).sum(), count + weight.sum()
    return total, count


def cells_inside(boxes: Float[Tensor, "k 4"], size: Sequence[int], stride: int = STRIDE) -> Bool[Tensor, "k h w"]:
    """Which cells of a map of ``size`` (h, w) lie in each box, xyxy px."""
    y, x = (torch.arange(length, device=boxes.device) * stride + 0.5 for length in size)
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return rows[:, :, None] & columns[:, None]


def colours_of(
    images: Float[Tensor, "n 3 h w"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "n 3 h/4 w/4"]:
    """The mean colours (LAB) around every cell of normalised RGB ``images``."""
    scale, shift = (images.new_tensor(values).view(3, 1, 1) for values in (std, mean))
    rgb = (images.float() * scale + shift).clamp(0, 1)
    half = STRIDE // 2
    # Windows around STRIDE·i, of which the last reaches beyond the image.
    pooled = F.avg_pool2d(rgb, STRIDE, STRIDE, half, count_include_pad=False)
    return lab(pooled[..., : images.shape[2] // STRIDE, : images.shape[3] // STRIDE])


def lab(rgb: Float[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
    """CIELAB (D65, 2°) of sRGB from 0 to 1, as :func:`skimage.color.rgb2lab`."""
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = rgb.new_tensor(
        [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
    )
    white = rgb.new_tensor([0.95047, 1.0, 1.08883]).view(3, 1, 1)
    xyz = torch.einsum("ij,...jhw->...ihw", matrix, linear) / white
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(-3)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-3)


def _dice(found: Float[Tensor, "k s"], true: Float[Tensor, "k s"]) -> Float[Tensor, " k"]:
    common = (found * true).sum(dim=1)
    return 1 - 2 * common / (found.square().sum(dim=1) + true.square().sum(dim=1) + 1e-5)


def _halves(size: Sequence[int], down: int, across: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the cells that have a neighbour ``down`` and ``across``, and of these neighbours."""
    height, width = size
    rows = slice(0, max(height - down, 0)), slice(down, height)
    columns = slice(0, max(width - across, 0)), slice(across, width)
    if across < 0:
        columns = slice(-across, width), slice(0, max(width + across, 0))
    return (rows[0], columns[0]), (rows[1], columns[1])

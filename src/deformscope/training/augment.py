"""Random views of annotated photos: flipped, scaled, cropped, in mosaics, with objects pasted in by their masks.

torchvision's transforms move images, boxes and masks together. Random numbers come from torch's default generator,
which the caller seeds, so that a view is a function of its slot's seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transform

from .sources import Sample, Source, boxes_of

GREY = (124, 116, 104)
"""The mean colour of ImageNet, which is zero after normalisation."""
LEAST_SIDE, LEAST_SEEN, SLIVER = 3.0, 0.1, 0.35
"""An object is dropped if a side is below this many px or less of its box is left than this share; if less than the
second share is left, it is ignored, since only a sliver of it is visible."""
CROP, WHOLE, MOSAIC = (0.5, 2.2), (0.8, 1.25), (0.9, 1.8)
"""Range of the scale of each view, relative to the scale at which the photo fits."""


def uniform(low: float, high: float) -> float:
    """A random number from ``low`` to ``high``, from torch's default generator."""
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))


def integer(low: int, high: int) -> int:
    """A random integer from ``low`` to ``high`` (excluded), from torch's default generator."""
    return int(torch.randint(low, high, ()))


def flipped(sample: Sample) -> Sample:
    """Flip horizontally."""
    return _moved(sample, transform.horizontal_flip)


def resized(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize to a height and width, px."""
    return _moved(sample, lambda one: transform.resize(one, list(size), antialias=True))


def window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crop to a window, which may extend beyond the photo (grey there); objects are clipped to it."""
    down, right = max(0, top + height - sample.image.shape[1]), max(0, left + width - sample.image.shape[2])
    up, before = max(0, -top), max(0, -left)

    def cut(one: Any) -> Any:
        fill: Any = list(GREY) if isinstance(one, tv_tensors.Image) else 0
        padded = transform.pad(one, [before, up, right, down], fill=fill)
        return transform.crop(padded, top + up, left + before, height, width)

    seen = _moved(sample, cut)
    share = _areas(seen.boxes) / _areas(sample.boxes).clamp(min=1e-6)
    sides = (seen.boxes[:, 2:] - seen.boxes[:, :2]).amin(dim=1)
    sliver = Sample(seen.image, seen.boxes, seen.labels, seen.ignore | (share < SLIVER), seen.masks)
    return sliver.pick((share > LEAST_SEEN) & (sides > LEAST_SIDE))


def placed(sample: Sample, size: tuple[int, int], scales: tuple[float, float], flip: float) -> Sample:
    """Place a photo on a canvas of ``size`` at a random scale and place, perhaps flipped."""
    height, width = sample.image.shape[1:]
    fit = min(size[0] / height, size[1] / width)
    scale = fit * math.exp(uniform(math.log(scales[0]), math.log(scales[1])))
    sample = resized(sample, (max(8, round(height * scale)), max(8, round(width * scale))))
    if uniform(0, 1) < flip:
        sample = flipped(sample)
    room = [inner - outer for inner, outer in zip(sample.image.shape[1:], size, strict=True)]
    top, left = (round(uniform(min(0, space), max(0, space))) for space in room)
    return window(sample, top, left, *size)


def view(source: Source, index: int, kind: str, canvas: tuple[int, int], flip: float) -> Sample:
    """One view of a photo: the ``photo`` itself or, on a canvas (height, width), ``whole``, a ``crop`` or a ``mosaic``.

    A mosaic shows the photo and three others around a random point.
    """
    if kind == "photo":
        sample = source.load(index)
        return flipped(sample) if uniform(0, 1) < flip else sample
    if kind != "mosaic":
        return placed(source.load(index), canvas, WHOLE if kind == "whole" else CROP, flip)
    height, width = canvas
    y, x = (integer(side // 4, 3 * side // 4 + 1) for side in canvas)
    windows = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
    indices = [index, *(integer(0, len(source)) for _ in windows[1:])]
    image = torch.empty(3, height, width, dtype=torch.uint8)
    parts = []
    for number, (top, left, bottom, right) in zip(indices, windows, strict=True):
        part = placed(source.load(number), (bottom - top, right - left), MOSAIC, flip)
        image[:, top:bottom, left:right] = part.image
        masks = None
        if part.masks is not None:
            masks = torch.zeros(len(part.boxes), height, width, dtype=torch.bool)
            masks[:, top:bottom, left:right] = part.masks
        shift = torch.tensor([left, top] * 2)
        parts.append(Sample(image, part.boxes + shift, part.labels, part.ignore, masks))
    return Sample(
        image,
        torch.cat([part.boxes for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.ignore for part in parts]),
        torch.cat([part.masks for part in parts if part.masks is not None]) if parts[0].masks is not None else None,
    )


def pasted(onto: Sample, source: Sample) -> Sample:
    """Paste some objects of ``source``, scaled to fit, in front of ``onto`` (Ghiasi et al., CVPR 2021).

    Masks and boxes of covered objects are cut, and objects with little left are dropped. Both samples need masks.
    """
    if onto.masks is None or source.masks is None:
        return onto
    height, width = onto.image.shape[1:]
    source = placed(source, (height, width), (0.5, 1.0), flip=0.5)
    assert source.masks is not None
    chosen = source.pick(~source.ignore & (torch.rand(len(source.boxes)) < 0.5))
    assert chosen.masks is not None
    cover = chosen.masks.any(dim=0)
    if not bool(cover.any()):
        return onto
    left = onto.masks & ~cover
    share = left.flatten(1).sum(1) / onto.masks.flatten(1).sum(1).clamp(min=1)
    kept = onto.ignore | (share > LEAST_SEEN)
    boxes = torch.where(left.flatten(1).any(dim=1)[:, None], boxes_of(left), onto.boxes)
    below = Sample(onto.image, boxes, onto.labels, onto.ignore | (share < SLIVER), left).pick(kept)
    assert below.masks is not None
    return Sample(
        torch.where(cover, source.image, onto.image),
        torch.cat([below.boxes, chosen.boxes]),
        torch.cat([below.labels, chosen.labels]),
        torch.cat([below.ignore, chosen.ignore]),
        torch.cat([below.masks, chosen.masks]),
    )


def _moved(sample: Sample, move: Callable[[Any], Any]) -> Sample:
    height, width = sample.image.shape[1:]
    boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=(height, width))
    masks = None if sample.masks is None else move(tv_tensors.Mask(sample.masks)).as_subclass(Tensor)
    return Sample(
        move(tv_tensors.Image(sample.image)).as_subclass(Tensor).contiguous(),
        move(boxes).as_subclass(Tensor),
        sample.labels,
        sample.ignore,
        masks,
    )


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)

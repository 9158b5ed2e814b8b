"""Data types: samples, prepared items, batches. Boxes are xyxy, labels 0-based."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from ...detectors.batch import Batch
from ...fields.field import Placement


@dataclass(frozen=True)
class Sample:
    """A photo and its objects, in photo px."""

    image: UInt8[Tensor, "3 h w"]
    boxes: Float[Tensor, "t 4"]
    labels: Int[Tensor, " t"]
    ignore: Bool[Tensor, " t"]
    """Crowds, difficult objects and slivers at a border, which count neither as objects nor as background."""
    masks: Bool[Tensor, "t h w"] | None = None

    def pick(self, kept: Tensor) -> Sample:
        """Select objects, by index or by a bool for each."""
        masks = None if self.masks is None else self.masks[kept]
        return Sample(self.image, self.boxes[kept], self.labels[kept], self.ignore[kept], masks)


@runtime_checkable
class Source(Protocol):
    """Photos with objects, by index."""

    names: tuple[str, ...]
    """Class names, in the order of the labels."""
    sizes: Sequence[tuple[int, int]]
    """Height and width of every photo, px."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample:
        """Load one photo and its objects."""
        ...

    def truth(self) -> dict[str, Any]:
        """All annotations in COCO's format: images in the order of the indices, categories by name."""
        ...

    @property
    def identity(self) -> str:
        """A text that changes when the data change."""
        ...


@dataclass(frozen=True)
class Item:
    """A sample for the network: normalised, resized, objects in network px; or the trunk's cached feature maps."""

    target: dict[str, Tensor]
    image: Float[Tensor, "3 h w"] | None = None
    placement: Placement | None = None
    maps: dict[str, Tensor] | None = None
    colours: Float[Tensor, "3 _ _"] | None = None
    """LAB, beside ``maps``."""


def collate(items: Sequence[Item]) -> Batch:
    """Collate items to a batch; images are padded with zeros at the right and bottom to the largest."""
    targets = [item.target for item in items]
    if items[0].maps is not None:
        stacked = {name: torch.stack([item.maps[name] for item in items if item.maps]) for name in items[0].maps}
        colours = [item.colours.float() for item in items if item.colours is not None]
        maps = {name: value.float() for name, value in stacked.items()}
        return Batch(targets, maps=maps, colours=torch.stack(colours) if colours else None)
    images = [item.image for item in items if item.image is not None]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return Batch(targets, batch, tuple(item.placement for item in items if item.placement is not None))


Prepare = Callable[[Sequence[np.ndarray], int | None], tuple[Tensor, list[Placement]]]
"""A function of RGB uint8 photos ``[h w 3]`` and a shorter side (None: as for detection), which returns the network's
input and how each photo lies in it."""


def prepared(sample: Sample, prepare: Prepare, shorter_side: int | None = None, *, masks: bool = True) -> Item:
    """Resize and normalise the sample by the network's own preparation, with its objects; ``masks`` keeps masks."""
    batch, (placement,) = prepare([sample.image.permute(1, 2, 0).numpy()], shorter_side)
    scale = torch.tensor([placement.scale[1], placement.scale[0]] * 2)
    target = {"boxes": sample.boxes * scale, "labels": sample.labels, "ignore": sample.ignore}
    if masks and sample.masks is not None:
        size = [round(s * f) for s, f in zip(placement.size, placement.scale, strict=True)]
        resized = torch.nn.functional.interpolate(sample.masks[:, None].float(), size=size, mode="nearest")
        target["masks"] = resized[:, 0] > 0
    return Item(target, batch[0], placement)

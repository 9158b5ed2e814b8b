"""Synthetic data: textured shapes on a textured background, drawn during training, with exact annotations.

A cell inside an object sees only texture; the class and the extent have to be found at the outline. So the whole object
has to be sampled, which is what deformable convolutions are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..datasets.values import run_lengths
from ..errors import DeformscopeError
from .recipe import Shapes
from .sources import Sample, boxes_of

NAMES = ("ellipse", "box", "triangle", "cross")
SPLITS = ("train", "val")
MOST_OBJECTS = 5
SMALLEST, LARGEST = 0.13, 0.85
"""Range of an object's longer side, relative to the image's shorter side."""
LONGEST = 1.8
"""Largest aspect ratio of an object."""
VISIBLE = 0.6
"""Smallest share of an object that later ones may leave visible."""
LEAST_AREA = 40
"""Objects with fewer px are not drawn."""
FINENESS = 3
"""Px of the finest grain of a texture."""


class ShapesSet:
    """One split of the synthetic data; image ``index`` is always the same."""

    def __init__(self, settings: Shapes, split: str) -> None:
        if split not in SPLITS:
            raise DeformscopeError(f"split={split!r}: shapes have 'train' and 'val'")
        if min(settings.size) < 32 or not 0 <= settings.difficulty <= 1 or min(settings.train, settings.val) < 1:
            raise DeformscopeError(
                f"data.shapes: size {settings.size}, difficulty {settings.difficulty:g}, {settings.train} and "
                f"{settings.val} images; expected at least 32 px a side, a difficulty of 0 to 1, at least one image"
            )
        self.settings, self.split = settings, split
        self.names: tuple[str, ...] = ("object",) if settings.one_class else NAMES
        self.sizes: Sequence[tuple[int, int]] = [settings.size] * getattr(settings, split)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def identity(self) -> str:
        """The settings."""
        return f"shapes-{self.split}-{asdict(self.settings)}"

    def load(self, index: int) -> Sample:
        """One image, with the exact boxes and masks of its objects."""
        sample = _drawn(self.settings, self.split, index)
        return replace(sample, labels=torch.zeros_like(sample.labels)) if self.settings.one_class else sample

    def truth(self) -> dict[str, Any]:
        """Annotations in COCO's format, with areas of the masks. The images have no files."""
        height, width = self.settings.size
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            images.append({"id": index, "file_name": f"{index}.png", "height": height, "width": width})
            sample = self.load(index)
            assert sample.masks is not None
            for box, label, mask in zip(sample.boxes.tolist(), sample.labels.tolist(), sample.masks, strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": label + 1,
                        "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                        "area": int(mask.sum()),
                        "segmentation": run_lengths(mask.numpy()),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.names)]
        return {"images": images, "annotations": annotations, "categories": categories}


@lru_cache(maxsize=4096)  # drawing takes a millisecond and 1/16 MB per image, as much as the network's share of a step
def _drawn(settings: Shapes, split: str, index: int) -> Sample:
    """Draw an image: the background, then objects from back to front."""
    random = np.random.default_rng([SPLITS.index(split), index, settings.seed])
    height, width = settings.size
    ground = random.uniform(0.2, 0.8, 3)
    image = _texture(random, settings.size, ground, settings.difficulty)
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    covers: list[np.ndarray] = []
    labels: list[int] = []
    areas: list[int] = []
    for _ in range(random.integers(1, MOST_OBJECTS + 1)):
        label = int(random.integers(len(NAMES)))
        cover = _outline(random, NAMES[label], settings.size, y, x)
        left = [(earlier & ~cover).sum() for earlier in covers]
        if cover.sum() < LEAST_AREA or any(seen < VISIBLE * area for seen, area in zip(left, areas, strict=True)):
            continue
        # The harder, the nearer is the object's colour to the background's.
        colour = ground + (1 - 0.75 * settings.difficulty) * _contrast(random)
        image[cover] = _texture(random, settings.size, colour, settings.difficulty)[cover]
        covers = [earlier & ~cover for earlier in covers]
        covers.append(cover)
        labels.append(label)
        areas.append(int(cover.sum()))
    image += random.normal(0, 0.03, image.shape)
    masks = np.array(covers, dtype=bool).reshape(-1, height, width)
    return Sample(
        torch.from_numpy((image.clip(0, 1) * 255).astype(np.uint8)).permute(2, 0, 1).contiguous(),
        boxes_of(torch.from_numpy(masks)),
        torch.tensor(labels, dtype=torch.int64),
        torch.zeros(len(labels), dtype=torch.bool),
        torch.from_numpy(masks),
    )


def _outline(random: np.random.Generator, name: str, size: tuple[int, int], y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The pixels of an object, which lies in the image or is cut by its border by at most a quarter."""
    longer = np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST))) * min(size)
    shorter = longer / random.uniform(1, LONGEST)
    angle = random.uniform(0, np.pi)
    middle = [random.uniform(longer / 4, side - longer / 4) for side in size]
    across = (x - middle[1]) * np.cos(angle) + (y - middle[0]) * np.sin(angle)
    along = (y - middle[0]) * np.cos(angle) - (x - middle[1]) * np.sin(angle)
    u, v = across / (longer / 2), along / (shorter / 2)
    if name == "ellipse":
        return u**2 + v**2 < 1
    if name == "box":
        return (abs(u) < 0.85) & (abs(v) < 0.85)
    if name == "triangle":
        return (v < 0.9) & (v > 2 * abs(u) - 1)
    return ((abs(u) < 0.33) & (abs(v) < 1)) | ((abs(v) < 0.33) & (abs(u) < 1))


def _texture(random: np.random.Generator, size: tuple[int, int], colour: np.ndarray, difficulty: float) -> np.ndarray:
    """Grain and stripes around a colour, ``[h w 3]``; stronger for higher difficulty."""
    coarse = [-(-side // FINENESS) for side in size]
    grain = random.normal(0, 1, coarse).repeat(FINENESS, 0).repeat(FINENESS, 1)[: size[0], : size[1], None]
    angle, period, phase = random.uniform(0, np.pi), random.uniform(4, 14), random.uniform(0, 2 * np.pi)
    y, x = np.ogrid[: size[0], : size[1]]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period) + phase)[..., None]
    tint = random.uniform(0.5, 1, 3)
    return colour + (0.03 + 0.12 * difficulty) * tint * (0.5 * grain + stripes)


def _contrast(random: np.random.Generator) -> np.ndarray:
    """A colour difference of length 0.4 in a random direction."""
    difference = random.normal(0, 1, 3)
    return 0.4 * difference / np.linalg.norm(difference)

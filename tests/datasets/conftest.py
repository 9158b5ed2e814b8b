"""Small folders in COCO's layout, to be changed by the tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

with install_import_hook("deformscope.datasets", "typechecker.check"):
    import deformscope.datasets.coco  # noqa: F401

SIZES = {1: (60, 80), 2: (90, 64), 3: (64, 64), 4: (48, 100)}
"""Height and width by image id."""
BOXES = {1: [(10, 12, 30, 20), (40, 5, 25, 33)], 2: [(0, 0, 50, 70)], 3: [], 4: [(4, 6, 40, 30), (60, 10, 30, 20)]}


@dataclass
class Folder:
    """A folder on disk and what its annotation file says."""

    root: Path
    content: dict[str, Any]
    annotations: Path
    photos: Path

    @property
    def images(self) -> list[Any]:
        return self.content["images"]

    @property
    def objects(self) -> list[Any]:
        return self.content["annotations"]

    def write(self, encoding: str = "utf-8") -> Path:
        """Write the annotation file; returns the folder."""
        self.annotations.parent.mkdir(parents=True, exist_ok=True)
        self.annotations.write_bytes(json.dumps(self.content).encode(encoding))
        return self.root


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def build(root: Path) -> Folder:
    """Four photos of unequal sizes: two objects, one, none, one and a crowd."""
    photos = root / "val"
    photos.mkdir(parents=True)
    random = np.random.default_rng(3)
    images, objects = [], []
    for number, (height, width) in SIZES.items():
        array = random.integers(0, 255, (height, width, 3)).astype(np.uint8)
        Image.fromarray(array).save(photos / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for place, box in enumerate(BOXES[number]):
            objects.append(
                {
                    "id": 100 + len(objects),
                    "image_id": number,
                    "category_id": 7 if number == 1 else 3,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": int(number == 4 and place == 1),
                    "segmentation": rectangle(*box),
                }
            )
    content = {"images": images, "annotations": objects}
    content["categories"] = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return Folder(root, content, root / "annotations" / "instances_val.json", photos)


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = build(tmp_path / "data")
    made.write()
    return made

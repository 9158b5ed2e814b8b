"""Small recipes, and data in COCO's layout made on the spot."""

import json
from pathlib import Path

import numpy as np
import pytest
from jaxtyping import install_import_hook
from PIL import Image

with install_import_hook("deformscope.training", "typechecker.check"):
    import deformscope.training.ablation
    import deformscope.training.report  # noqa: F401

from deformscope.training.reading import read
from deformscope.training.recipe import Recipe

TINY = (
    "network.channels=16",
    "data.shapes.train=24",
    "data.shapes.val=6",
    "data.shapes.size=[64, 96]",
    "data.shapes.difficulty=0",
    "data.batch=4",
    "optimiser.warmup=2",
    "run.steps=12",
    "run.checkpoint_every=4",
    "run.log_every=2",
    "evaluation.score=0.001",
)


@pytest.fixture
def tiny_overrides() -> tuple[str, ...]:
    """What makes the shapes recipe small."""
    return TINY


@pytest.fixture
def tiny():
    """The shapes recipe at a size that trains in a second."""

    def make(*overrides: str) -> Recipe:
        return read("shapes", [*TINY, *overrides])

    return make


@pytest.fixture
def coco(tmp_path):
    """A folder in COCO's layout: four photos of unequal sizes, one empty, one with a crowd; changed by ``spoil``."""

    def make(spoil=lambda records: None, split="train") -> Path:
        folder = tmp_path / "coco"
        (folder / split).mkdir(parents=True, exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        random = np.random.default_rng(3)
        images, annotations = [], []
        boxes = {1: [(10, 12, 30, 20), (40, 5, 25, 33)], 2: [(0, 0, 50, 70)], 3: [], 4: [(4, 6, 40, 30)]}
        for number, (height, width) in enumerate([(60, 80), (90, 64), (64, 64), (48, 100)], start=1):
            array = random.integers(0, 255, (height, width, 3)).astype(np.uint8)
            Image.fromarray(array).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for x, y, w, h in boxes[number]:
                annotations.append(
                    {
                        "id": 100 + len(annotations),
                        "image_id": number,
                        "category_id": 7 if number == 1 else 3,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": int(number == 4),
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        records = {"images": images, "annotations": annotations}
        records["categories"] = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
        spoil(records)
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(records))
        return folder

    return make

"""A small untrained detector with random offsets, and a small annotated folder."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import SmallDetector
from deformscope.score import Scores, Settings, score


@pytest.fixture
def small():
    return build_detector()


@pytest.fixture
def folder(tmp_path):
    return build_folder(tmp_path / "boxes")


@dataclass(frozen=True)
class Run:
    """A run that is done: nothing of it is to be changed."""

    detector: SmallDetector
    folder: Path
    out: Path
    scores: Scores


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("score")
    detector, folder = build_detector(), build_folder(root / "boxes")
    return Run(detector, folder, root / "run", score(detector, folder, root / "run", Settings(draws=40)))


def build_detector():
    torch.manual_seed(0)
    detector = SmallDetector(DenseConfig(("cat", "dog"), channels=16, shorter_side=64, longer_side=96))
    for head in detector.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.1)
    return detector.eval()


def build_folder(root):
    """Fourteen photos of bright boxes, COCO's layout; photos 3 and 5 are cut off, 7 is without an object."""
    random = np.random.default_rng(11)
    (root / "annotations").mkdir(parents=True)
    (root / "val").mkdir()
    images, annotations = [], []
    for number in range(14):
        h, w = (72, 104) if number % 2 else (96, 64)
        photo = random.integers(0, 120, (h, w, 3), dtype=np.uint8)
        for thing in range(number % 3 + 1):
            bw, bh = int(random.integers(12, 50)), int(random.integers(12, 50))
            x, y = int(random.integers(0, w - bw)), int(random.integers(0, h - bh))
            photo[y : y + bh, x : x + bw] += 100
            if number != 7:
                polygon = [x, y, x + bw, y, x + bw, y + bh, x, y + bh]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": thing % 2 + 1,
                        "bbox": [x, y, bw, bh],
                        "area": bw * bh,
                        "iscrowd": int(thing == 2),
                        "segmentation": [polygon],
                    }
                )
        name = f"{number:02}.png"
        Image.fromarray(photo).save(root / "val" / name)
        images.append({"id": number, "file_name": name, "height": h, "width": w})
    for name in ("03.png", "05.png"):
        whole = (root / "val" / name).read_bytes()
        (root / "val" / name).write_bytes(whole[: len(whole) // 2])
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))
    return root

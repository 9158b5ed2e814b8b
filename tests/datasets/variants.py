"""One folder in COCO's layout in many variants: those that are taken, and those that are refused, with what is said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deformscope.datasets.coco import read_coco
from deformscope.errors import DeformscopeError
from deformscope.metrics.coco import evaluate
from deformscope.score.scenes import open_folder
from deformscope.training.sources import CocoFolder

Seen = dict[str, list[tuple[str, tuple[float, ...], bool, bytes]]]
"""By file name the objects: class, box, whether it is ignored, mask."""


@dataclass
class Perfect:
    """A detector that finds exactly the objects that count."""

    objects: Seen
    class_names: tuple[str, ...] = ("dog", "cat")
    name: str = "perfect"

    def __call__(self, photos: list[Path], **settings: Any) -> list[dict[str, torch.Tensor]]:
        return [self.found(photo) for photo in photos]

    def found(self, photo: Path) -> dict[str, torch.Tensor]:
        with Image.open(photo) as image:
            height, width = image.size[::-1]
        own = [one for one in self.objects[photo.name] if not one[2]]
        masks = np.array([np.frombuffer(one[3], dtype=bool) for one in own], dtype=bool)
        return {
            "boxes": torch.tensor([one[1] for one in own]).view(-1, 4),
            "labels": torch.tensor([self.class_names.index(one[0]) for one in own], dtype=torch.int64),
            "scores": torch.linspace(0.9, 0.8, len(own)),
            "masks": torch.from_numpy(masks.reshape(-1, height, width)),
        }


def by_score(data: Path, split: str) -> Seen:
    photos = open_folder(data, split)
    scenes = {photos.images[i].path.name: photos.scene(i) for i in range(len(photos.images))}
    return {
        name: [(thing.category, thing.box, thing.ignored, thing.mask.tobytes()) for thing in scene.things]
        for name, scene in sorted(scenes.items())
    }


def by_train(data: Path, split: str) -> Seen:
    source = CocoFolder(data, split, masks=True)
    seen: Seen = {}
    for index, image in enumerate(source.truth()["images"]):
        sample = source.load(index)
        columns = (sample.labels.tolist(), sample.boxes.tolist(), sample.ignore.tolist(), sample.masks.numpy())
        seen[Path(image["file_name"]).name] = [
            (source.names[label], tuple(box), ignored, mask.tobytes())
            for label, box, ignored, mask in zip(*columns, strict=True)
        ]
    return dict(sorted(seen.items()))


def by_evaluate(data: Path, split: str, expected: Seen) -> list[float]:
    scores = evaluate(Perfect(expected), read_coco(data, split))
    return [scores[0].ap, scores[0].recall, *(score.ap for score in scores[1:])]


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(DeformscopeError) as raised:
        call(*arguments)
    return str(raised.value)


def objects(**values):
    """All objects get these values; functions make them of the old one."""

    def change(folder):
        for one in folder.objects:
            one |= {key: value(one[key]) if callable(value) else value for key, value in values.items()}

    return change


def second(**values):
    """The second object, photo 1's, id 101, gets these values."""
    return lambda folder: folder.objects[1].update(values)


def images(**values):
    def change(folder):
        for one in folder.images:
            one |= {key: value(one[key]) if callable(value) else value for key, value in values.items()}

    return change


def first(**values):
    """The first photo gets these values."""
    return lambda folder: folder.images[0].update(values)


def ids(image, one, category):
    def change(folder):
        for place, entry in enumerate(folder.objects):
            entry |= {"id": one(place), "image_id": image(entry["image_id"])}
            entry["category_id"] = category(entry["category_id"])
        for entry in folder.images:
            entry["id"] = image(entry["id"])
        for entry in folder.content["categories"]:
            entry["id"] = category(entry["id"])

    return change


def moved(place):
    def change(folder):
        (folder.root / place).parent.mkdir(parents=True, exist_ok=True)
        folder.photos.rename(folder.root / place)

    return change


def run_lengths(folder):
    """Segmentations as the library's run lengths."""
    from pycocotools import mask as coco

    sizes = {image["id"]: (image["height"], image["width"]) for image in folder.images}
    for one in folder.objects:
        size = sizes[one["image_id"]]
        (code,) = coco.frPyObjects(one["segmentation"], *size)
        one["segmentation"] = {"size": list(size), "counts": code["counts"].decode()}


def turned_on_their_sides(folder):
    """Photos that EXIF turns, annotated as stored."""
    for path in folder.photos.iterdir():
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)


TAKEN = {
    "photos in images/val": moved("images/val"),
    "difficult objects": lambda folder: [one.update(difficult=one.pop("iscrowd"), iscrowd=0) for one in folder.objects],
    "compressed run lengths": run_lengths,
    "names that climb and come back": images(file_name=lambda name: f"../val/{name}"),
}

REFUSED = {
    "another size": (first(height=61), "1.png: 80×60 px where the annotations say 80×61"),
    "box NaN": (second(bbox=[1, 2, float("nan"), 4]), "1.png, annotation 101: bbox [1, 2, nan, 4]: expected four"),
    "polygon of four": (
        second(segmentation=[[1, 2, 3, 4]]),
        "1.png, annotation 101: segmentation [[1, 2, 3, 4]]: expected polygons",
    ),
}

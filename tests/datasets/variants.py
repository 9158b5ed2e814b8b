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


def without(kind, key):
    def change(folder):
        for one in folder.content[kind]:
            one.pop(key, None)

    return change


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


def run_lengths(text):
    """Segmentations as run lengths, the library's text or a list."""
    from pycocotools import mask as coco

    def change(folder):
        sizes = {image["id"]: (image["height"], image["width"]) for image in folder.images}
        for one in folder.objects:
            size = sizes[one["image_id"]]
            (code,) = coco.frPyObjects(one["segmentation"], *size)
            flat = coco.decode(code).T.reshape(-1)
            ends = np.flatnonzero(np.diff(flat, prepend=0, append=2))
            runs = np.diff(ends, prepend=0).tolist()
            one["segmentation"] = {"size": list(size), "counts": code["counts"].decode() if text else runs}

    return change


def turned_on_their_sides(folder):
    """Photos that EXIF turns, annotated as stored."""
    for path in folder.photos.iterdir():
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)


def linked(folder):
    for path in list(folder.photos.iterdir()):
        path.rename(folder.root / f"real {path.name}")
        path.symlink_to(folder.root / f"real {path.name}")


def polygon(*values):
    return second(segmentation=[list(values)])


TAKEN = {
    "as they are": lambda folder: None,
    "UTF-8 with a mark": "utf-8-sig",
    "UTF-16": "utf-16",
    "UTF-16 without a mark": "utf-16-le",
    "ids from zero": ids(lambda i: i - 1, lambda i: i, lambda i: i - 3),
    "ids as texts of numbers": ids(str, str, str),
    "ids as texts": ids(lambda i: f"p{i}", lambda i: f"o{i}", lambda i: f"c{i}"),
    "ids as floats": ids(lambda i: i + 0.5, float, float),
    "ids of photos as texts in annotations only": objects(image_id=str),
    "photos in images/": moved("images"),
    "photos in images/val": moved("images/val"),
    "photos in val2017": moved("val2017"),
    "sizes as texts": images(height=str, width=str),
    "sizes as floats": images(height=float, width=float),
    "no sizes": lambda folder: [without("images", key)(folder) for key in ("height", "width")],
    "boxes as texts": objects(bbox=lambda box: [str(v) for v in box]),
    "no areas": without("annotations", "area"),
    "areas null": objects(area=None),
    "crowds null where there are none": objects(iscrowd=lambda crowd: crowd or None),
    "crowds as texts": objects(iscrowd=str),
    "crowds as truth values": objects(iscrowd=bool),
    "difficult objects": lambda folder: [one.update(difficult=one.pop("iscrowd"), iscrowd=0) for one in folder.objects],
    "run lengths": run_lengths(text=False),
    "compressed run lengths": run_lengths(text=True),
    "a polygon of two corners beside others": objects(segmentation=lambda own: [*own, [1, 2, 3, 4]]),
    "links": linked,
    "names that climb and come back": images(file_name=lambda name: f"../val/{name}"),
    "whole paths inside": lambda folder: [
        one.update(file_name=str(folder.photos / one["file_name"])) for one in folder.images
    ],
}

REFUSED = {
    "a photo that is not there": (first(file_name="gone.png"), "gone.png: no such file below"),
    "a photo outside the folder": (first(file_name="../secret.png"), "../secret.png: outside the folder of photos"),
    "an absolute name": (first(file_name="/etc/hostname"), "/etc/hostname: outside the folder of photos"),
    "a file name that is none": (first(file_name=None), "images[0]: file_name None: expected a text"),
    "another size": (first(height=61), "1.png: 80×60 px where the annotations say 80×61"),
    "a size of text": (first(height="tall"), "1.png: height tall and width 80: expected whole numbers"),
    "a size of zero": (first(height=0), "1.png: height 0 and width 80: expected whole numbers"),
    "an id of null": (first(id=None), "1.png: image id None: expected a number or a text"),
    "two photos of one id": (first(id=2), "1.png: its image id 2 occurs more than once"),
    "no file names": (without("images", "file_name"), "images[0]: file_name missing"),
    "box null": (second(bbox=None), "1.png, annotation 101: bbox None: expected four numbers"),
    "box text": (second(bbox="all"), "1.png, annotation 101: bbox all: expected four numbers"),
    "box of three": (second(bbox=[1, 2, 3]), "1.png, annotation 101: bbox [1, 2, 3]: expected four numbers"),
    "box with null": (second(bbox=[1, 2, None, 4]), "1.png, annotation 101: bbox [1, 2, None, 4]: expected four"),
    "box with text": (second(bbox=[1, 2, "wide", 4]), "1.png, annotation 101: bbox [1, 2, 'wide', 4]: expected four"),
    "box NaN": (second(bbox=[1, 2, float("nan"), 4]), "1.png, annotation 101: bbox [1, 2, nan, 4]: expected four"),
    "box infinite": (second(bbox=[1, 2, float("inf"), 4]), "1.png, annotation 101: bbox [1, 2, inf, 4]: expected four"),
    "box without area": (second(bbox=[1, 2, 0, 4]), "1.png, annotation 101: bbox [1, 2, 0, 4]: zero area"),
    "box of negative width": (second(bbox=[9, 2, -5, 4]), "1.png, annotation 101: bbox [9, 2, -5, 4]: zero area"),
    "box left of the photo": (second(bbox=[-9, 2, 20, 4]), "1.png, annotation 101: bbox [-9, 2, 20, 4]: outside"),
    "box beyond the photo": (second(bbox=[70, 2, 20, 4]), "1.png, annotation 101: bbox [70, 2, 20, 4]: outside"),
    "unknown category": (second(category_id=4), "1.png, annotation 101: category_id 4: unknown"),
    "category null": (second(category_id=None), "1.png, annotation 101: category_id None: unknown"),
    "unknown photo": (second(image_id=9), "image 9, annotation 101: no such image"),
    "annotation ids twice": (second(id=100), "1.png, annotation 100: its id occurs more than once"),
    "annotation id null": (second(id=None), "1.png, annotations[1]: id None: expected a number or a text"),
    "no boxes": (without("annotations", "bbox"), "1.png, annotation 100: bbox missing"),
    "no annotation ids": (without("annotations", "id"), "1.png, annotations[0]: id missing"),
    "no image ids": (without("annotations", "image_id"), "annotations[0], annotation 100: image_id missing"),
    "no category ids": (without("annotations", "category_id"), "1.png, annotation 100: category_id missing"),
    "crowd text": (second(iscrowd="maybe"), "1.png, annotation 101: iscrowd maybe: expected 0 or 1"),
    "area text": (second(area="large"), "1.png, annotation 101: area large: expected px²"),
    "area NaN": (second(area=float("nan")), "1.png, annotation 101: area nan: expected px²"),
    "polygon of four": (polygon(1, 2, 3, 4), "1.png, annotation 101: segmentation [[1, 2, 3, 4]]: expected polygons"),
    "polygon of seven": (polygon(1, 2, 3, 4, 5, 6, 7), "1.png, annotation 101: polygon [1, 2, 3, 4, 5, 6, 7]: 7 num"),
    "polygon with text": (polygon(1, 2, 3, 4, 5, "six"), "1.png, annotation 101: polygon [1, 2, 3, 4, 5, 'six']"),
    "polygon NaN": (polygon(1, 2, 3, 4, 5, float("nan")), "1.png, annotation 101: polygon [1, 2, 3, 4, 5, nan]"),
    "polygon outside": (polygon(90, 2, 99, 2, 95, 9), "annotation 101: segmentation [[90, 2, 99, 2, 95, 9]]: outside"),
    "polygon flat": (second(segmentation=[1, 2, 3, 4, 5, 6]), "annotation 101: segmentation [1, 2, 3, 4, 5, 6]: exp"),
    "segmentation text": (second(segmentation="all"), "1.png, annotation 101: segmentation all: expected polygons"),
    "run lengths too long": (
        second(segmentation={"size": [60, 80], "counts": [3, 99999]}),
        "1.png, annotation 101: run lengths of 100002 pixels: expected 4800",
    ),
    "run lengths of another size": (
        second(segmentation={"size": [80, 60], "counts": [3, 4797]}),
        "1.png, annotation 101: run lengths of size [80, 60]: expected [60, 80]",
    ),
    "run lengths of noise": (
        second(segmentation={"size": [60, 80], "counts": "noise"}),
        "1.png, annotation 101: run lengths",
    ),
    "an annotation that is none": (lambda f: f.objects.append(7), "annotations[5]: 7: expected an object"),
    "no categories": (lambda f: f.content.pop("categories"), "no COCO annotations (categories: None)"),
    "no images": (lambda f: f.content.pop("images"), "no COCO annotations (images: None)"),
    "category names twice": (
        lambda f: f.content["categories"][0].update(name="cat"),
        "the name cat occurs more than once",
    ),
}

"""Photos and annotations in COCO's layout, checked before training starts.

A broken annotation found at step 3,000 costs hours; all that can be seen without opening the photos is looked at first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torchvision.datasets import CocoDetection

from ...errors import DeformscopeError
from ...photo import read
from .sample import Sample

OUTSIDE = 1.0
"""Px by which a box may leave its photo before that counts as an error; it is clipped. Rounding does as much."""
SHOWN = 5
"""Problems named in one message."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one annotation or photo."""

    file_name: str
    annotation: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file_name}{'' if self.annotation is None else f', annotation {self.annotation}'}: {self.what}"


class CocoFolder:
    """One split: ``annotations/instances_SPLIT.json`` and the photos in ``SPLIT/`` (or ``images/SPLIT/``)."""

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        masks: bool = False,
        broken: Literal["refuse", "skip"] = "refuse",
        empty: Literal["keep", "drop"] = "keep",
    ) -> None:
        annotations, photos = _locate(folder, split)
        records = _records(annotations)
        problems = list(problems_of(records, photos, masks))
        if problems and broken == "refuse":
            more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise DeformscopeError(
                f"{annotations}: {len(problems)} broken annotations: {'; '.join(map(str, problems[:SHOWN]))}{more}; "
                "correct them, or leave them out with data.broken=skip"
            )
        self.problems, self._masks, self._annotations = tuple(problems), masks, annotations
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
            self._photos = CocoDetection(str(photos), str(annotations))
        bad = {p.annotation for p in problems}
        missing = {p.file_name for p in problems if p.annotation is None}
        index = self._photos.coco
        kept = [i for i in self._photos.ids if index.imgs[i]["file_name"] not in missing]
        self._objects = {i: [o for o in index.imgToAnns[i] if o["id"] not in bad] for i in kept}
        if empty == "drop":
            kept = [i for i in kept if any(not o.get("iscrowd") for o in self._objects[i])]
        if not kept:
            raise DeformscopeError(f"{annotations}: no photo to use; expected some with objects")
        self._ids = kept
        categories = sorted(records["categories"], key=lambda c: c["id"])
        self.names: tuple[str, ...] = tuple(category["name"] for category in categories)
        self._labels = {category["id"]: label for label, category in enumerate(categories)}
        self.sizes: Sequence[tuple[int, int]] = [(index.imgs[i]["height"], index.imgs[i]["width"]) for i in kept]

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def identity(self) -> str:
        """The annotation file's digest and how many photos are used."""
        return f"{hashlib.sha256(self._annotations.read_bytes()).hexdigest()[:16]}-{len(self)}"

    def load(self, index: int) -> Sample:
        """One photo and its objects, boxes clipped to it. Raises DeformscopeError when its size is not as noted."""
        number = self._ids[index]
        record = self._photos.coco.imgs[number]
        image = read(Path(self._photos.root) / record["file_name"])
        height, width = self.sizes[index]
        if image.shape[:2] != (height, width):
            raise DeformscopeError(
                f"{record['file_name']}: {image.shape[1]}×{image.shape[0]} px where its annotations say "
                f"{width}×{height}; resize one of them"
            )
        objects = self._objects[number]
        boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = None
        if self._masks:
            found = [self._photos.coco.annToMask(o) for o in objects]
            masks = torch.from_numpy(np.array(found, dtype=bool).reshape(-1, height, width))
        return Sample(
            torch.from_numpy(image).permute(2, 0, 1),
            boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2)),
            torch.tensor([self._labels[o["category_id"]] for o in objects], dtype=torch.int64),
            torch.tensor([bool(o.get("iscrowd")) for o in objects], dtype=torch.bool),
            masks,
        )

    def truth(self) -> dict[str, Any]:
        """COCO's format, of the photos that are used."""
        index = self._photos.coco
        return {
            "images": [index.imgs[i] for i in self._ids],
            "annotations": [o for i in self._ids for o in self._objects[i]],
            "categories": index.dataset["categories"],
        }


def problems_of(records: dict[str, Any], photos: Path, masks: bool = False) -> Iterator[Problem]:
    """All that is broken: missing photos, boxes outside or empty, unknown categories, missing masks."""
    there = {path.relative_to(photos).as_posix() for path in photos.rglob("*") if path.is_file()}
    images = {image["id"]: image for image in records["images"]}
    if len(images) < len(records["images"]):
        yield Problem("images", None, f"{len(records['images']) - len(images)} ids occur more than once")
    for image in records["images"]:
        if image["file_name"] not in there:
            yield Problem(image["file_name"], None, f"no such file below {photos}")
    categories = {category["id"] for category in records["categories"]}
    seen = set()
    for one in records["annotations"]:
        number, image = one["id"], images.get(one["image_id"])
        name = f"image {one['image_id']}" if image is None else image["file_name"]
        what = "its id occurs more than once" if number in seen else _problem(one, image, categories, masks)
        seen.add(number)
        if what:
            yield Problem(name, number, what)


def _problem(one: dict[str, Any], image: dict[str, Any] | None, categories: set[int], masks: bool) -> str | None:
    if image is None:
        return "no such image among `images`"
    if one["category_id"] not in categories:
        return f"category_id {one['category_id']}: unknown"
    box = one["bbox"]
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
    if not numbers or not all(math.isfinite(v) for v in box):
        return f"bbox {box}: expected four numbers x, y, width, height"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"bbox {box}: zero area"
    width, height = image["width"], image["height"]
    if x < -OUTSIDE or y < -OUTSIDE or x + w > width + OUTSIDE or y + h > height + OUTSIDE:
        return f"bbox {box}: outside the photo, {width}×{height} px"
    if masks and not one.get("iscrowd") and not one.get("segmentation"):
        return "no segmentation, and this network learns masks"
    return None


def _locate(folder: Path, split: str) -> tuple[Path, Path]:
    annotations = folder / "annotations" / f"instances_{split}.json"
    # instances_train_masks.json speaks of the photos in train/.
    for name in (split, f"images/{split}", split.removesuffix("_masks")):
        if annotations.is_file() and (folder / name).is_dir():
            return annotations, folder / name
    raise DeformscopeError(
        f"{folder}: no annotations/instances_{split}.json with a folder {split}/; expected COCO's layout, "
        "or set data.folder, data.train and data.val"
    )


def _records(path: Path) -> dict[str, Any]:
    needed = {
        "images": {"id", "file_name", "width", "height"},
        "annotations": {"id", "image_id", "category_id", "bbox"},
        "categories": {"id", "name"},
    }
    try:
        records = json.loads(path.read_bytes())
        for kind, keys in needed.items():
            for one in records[kind]:
                if not keys <= one.keys():
                    raise DeformscopeError(
                        f"{path}: an entry of {kind} (id {one.get('id')}) has no {', '.join(sorted(keys - one.keys()))}"
                    )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, DeformscopeError):
            raise
        raise DeformscopeError(f"{path}: no COCO annotations ({type(error).__name__}: {error}); get it again") from None
    return records

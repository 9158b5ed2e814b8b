"""Annotated photos of a COCO-layout folder: boxes and, where there are any, masks; and off-centre crops of them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ...errors import DeformscopeError
from ...photo import read

Array = np.ndarray
SMALL, LARGE = 32.0**2, 96.0**2
"""COCO's bounds of box area, px²: small below the first, large from the second on."""


@dataclass(frozen=True)
class Thing:
    """One annotated object."""

    category: str
    box: tuple[float, float, float, float]
    """xyxy, photo px."""
    mask: Bool[Array, "h w"] | None = None
    ignored: bool = False
    """Neither right nor wrong: a crowd (COCO), a difficult object (VOC), or one that a crop has cut up."""

    @property
    def size(self) -> tuple[float, float]:
        """Height and width, px."""
        return self.box[3] - self.box[1], self.box[2] - self.box[0]

    @property
    def centre(self) -> tuple[float, float]:
        """The box's, (y, x) px."""
        return (self.box[1] + self.box[3]) / 2, (self.box[0] + self.box[2]) / 2

    @property
    def area_class(self) -> str:
        """``S``, ``M`` or ``L`` by the box's area."""
        area = self.size[0] * self.size[1]
        return "S" if area < SMALL else "M" if area < LARGE else "L"

    def covers(self, points: Float[Array, "*points 2"]) -> Bool[Array, "*points"]:
        """Which places (y, x) px lie on the object: on its mask if it has one, else in its box."""
        y, x = points[..., 0], points[..., 1]
        x0, y0, x1, y1 = self.box
        if self.mask is None:
            return (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
        h, w = self.mask.shape
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        rows, columns = (np.clip(v.astype(int), 0, most - 1) for v, most in ((y, h), (x, w)))
        return inside & self.mask[rows, columns]


@dataclass(frozen=True)
class Scene:
    """A photo and the objects on it."""

    photo: np.ndarray
    """RGB uint8 [h w 3]."""
    things: tuple[Thing, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photo, px."""
        return self.photo.shape[0], self.photo.shape[1]

    @property
    def counted(self) -> tuple[Thing, ...]:
        """The objects that are neither ignored nor empty."""
        return tuple(t for t in self.things if not t.ignored and min(t.size) >= 1)


@dataclass(frozen=True)
class Photos:
    """An annotated folder: its images in a fixed random order, so that the first N are a fair sample."""

    folder: Path
    annotations: Path
    images: tuple[dict[str, Any], ...]
    things: dict[int, list[dict[str, Any]]]
    categories: dict[int, str]

    def scene(self, index: int) -> Scene:
        """Read one photo and its objects. Raises DeformscopeError, naming the file, where it cannot be read."""
        image = self.images[index]
        path = self.folder / image["file_name"]
        # By its name: a link that lies in the folder is its owner's doing, and data sets are often made of links.
        if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(self.folder)):
            raise DeformscopeError(f"{path}: outside the folder of photos; the annotations may name only what is in it")
        photo = read(path)
        size = photo.shape[:2]
        if (image["height"], image["width"]) != size:
            raise DeformscopeError(
                f"{path}: {size[1]}×{size[0]} px where the annotations say "
                f"{image['width']}×{image['height']}; get file and annotations from the same place"
            )
        return Scene(photo, tuple(self._thing(a, size) for a in self.things.get(image["id"], ())))

    def _thing(self, annotation: dict[str, Any], size: tuple[int, int]) -> Thing:
        x, y, w, h = (float(value) for value in annotation["bbox"])
        box = (max(x, 0.0), max(y, 0.0), min(x + w, float(size[1])), min(y + h, float(size[0])))
        number = annotation.get("category_id", -1)
        category = self.categories.get(number, str(number))
        mask = decode(annotation.get("segmentation"), size)
        return Thing(category, box, mask, bool(annotation.get("iscrowd", 0)))


def open_folder(data: Path, split: str = "val", seed: int = 0) -> Photos:
    """Find annotations and photos of ``split`` in a COCO-layout folder; or take an annotation file.

    A folder holds ``annotations/instances_<split>….json`` and the photos in ``<split>…/``; an annotation file lies in
    such a folder, which tells where its photos are. Raises DeformscopeError for what does not fit.
    """
    file = data if data.suffix == ".json" else _annotations(data, split)
    root = file.parent.parent
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = [{key: image[key] for key in ("id", "file_name", "height", "width")} for image in content["images"]]
        things: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if len(annotation["bbox"]) != 4:
                raise ValueError(f"bbox {annotation['bbox']}")
            things[annotation["image_id"]].append(annotation)
        categories = {c["id"]: str(c["name"]) for c in content["categories"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeformscopeError(
            f"{file}: no COCO annotations ({type(error).__name__}: {error}); expected images (id, file_name, height, "
            "width), annotations (image_id, bbox) and categories (id, name)"
        ) from None
    order = np.random.default_rng(seed).permutation(len(images))
    images.sort(key=lambda image: image["id"])
    return Photos(_photos(root, file), file, tuple(images[i] for i in order), dict(things), categories)


def _annotations(data: Path, split: str) -> Path:
    if not data.is_dir():
        raise DeformscopeError(f"{data}: no such folder; expected one with annotations/instances_{split}….json")
    found = sorted((data / "annotations").glob(f"instances_{split}*.json"), key=lambda path: len(path.name))
    if not found:
        there = ", ".join(sorted(path.name for path in data.glob("annotations/*.json"))) or "none"
        raise DeformscopeError(
            f"{data}: no annotations/instances_{split}….json; there: {there}; give another split or the file itself"
        )
    return found[0]


def _photos(root: Path, file: Path) -> Path:
    split = file.stem.removeprefix("instances_")
    folders = [folder for folder in root.iterdir() if folder.is_dir() and split.startswith(folder.name)]
    if not folders:
        raise DeformscopeError(f"{file}: no folder of photos named like {split!r} in {root}")
    return max(folders, key=lambda folder: len(folder.name))


def decode(segmentation: Any, size: tuple[int, int]) -> Bool[Array, "h w"] | None:
    """A COCO segmentation (polygons, RLE, compressed RLE) as a mask; None where there is none or it is no mask."""
    if not segmentation:
        return None
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise DeformscopeError(
            "masks need pycocotools: pip install 'deformscope[score]', or leave the masks out"
        ) from None
    try:
        if isinstance(segmentation, list):
            # Fewer than three corners are no polygon, and make pycocotools fail.
            polygons = [_on_photo(polygon, size) for polygon in segmentation if len(polygon) >= 6]
            rle = coco.merge(coco.frPyObjects(polygons, *size)) if polygons else None
        elif isinstance(segmentation["counts"], list):
            rle = coco.frPyObjects(segmentation, *size)
        else:
            rle = segmentation
        # Its decoder trusts the run lengths it is given and writes beyond the mask where they are too long.
        if rle is None or tuple(rle["size"]) != size or int(_runs(rle)) != size[0] * size[1]:
            return None
        return coco.decode(rle).astype(bool)
    except Exception:  # pycocotools raises bare ones for what it cannot read
        return None


def _on_photo(polygon: Any, size: tuple[int, int]) -> list[float]:
    """A polygon without corners far beyond the photo, to each of which pycocotools would draw a line."""
    corners = np.asarray(polygon, dtype=float)[: len(polygon) // 2 * 2].reshape(-1, 2)
    if not np.isfinite(corners).all():
        raise ValueError("polygon")
    return np.clip(corners, -max(size), 2.0 * max(size)).reshape(-1).tolist()


def _runs(rle: dict[str, Any]) -> int:
    """The number of pixels that a compressed RLE's runs cover (COCO's variable-length code, 5 bits a character)."""
    counts = rle["counts"]
    data = counts if isinstance(counts, bytes) else str(counts).encode()
    runs: list[int] = []
    value, shift = 0, 0
    for character in data:
        digit = character - 48
        if not 0 <= digit < 64:
            raise ValueError(counts)
        value |= (digit & 31) << shift
        shift += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << shift
            if len(runs) > 2:
                value += runs[-2]
            if value < 0:
                raise ValueError(counts)
            runs.append(value)
            value, shift = 0, 0
    return sum(runs)


CROP = 0.7
"""Sides of an off-centre crop, of the photo's."""
LEAST_SHIFT = 0.15
"""How far, in half diagonals of the crop, the object's centre has to lie from its own to count as off-centre."""


def off_centre(scene: Scene) -> Scene | None:
    """The crop (0.7 of each side) in which the largest object's centre lies farthest from the crop's own.

    Only crops that keep the object whole are taken, or, of one that is larger than the crop, that are filled by it
    along that axis; None where no crop moves it by 0.15 of the crop's half diagonal. Objects of which less than half is
    left are ignored.
    """
    if not scene.counted:
        return None
    height, width = scene.size
    h, w = round(CROP * height), round(CROP * width)
    x0, y0, x1, y1 = max(scene.counted, key=lambda t: t.size[0] * t.size[1]).box
    best, corner = 0.0, (0, 0)
    for top in _positions(y0, y1, h, height):
        for left in _positions(x0, x1, w, width):
            middle = [
                (max(low, first) + min(high, first + length)) / 2 - first  # of what is left of it
                for low, high, first, length in ((y0, y1, top, h), (x0, x1, left, w))
            ]
            shift = np.hypot(middle[0] / h - 0.5, middle[1] / w - 0.5) / np.hypot(0.5, 0.5)
            if shift > best:
                best, corner = float(shift), (top, left)
    if best < LEAST_SHIFT:
        return None
    top, left = corner
    return Scene(scene.photo[top : top + h, left : left + w], tuple(_cut(t, top, left, h, w) for t in scene.things))


def _positions(low: float, high: float, length: int, whole: int) -> list[int]:
    """The outermost positions of a window that keep the stretch low..high inside (or, if longer, fill the window)."""
    first, last = sorted((int(np.ceil(high)) - length, int(np.floor(low))))
    return [int(np.clip(first, 0, whole - length)), int(np.clip(last, 0, whole - length))]


def _cut(thing: Thing, top: int, left: int, h: int, w: int) -> Thing:
    x0, y0, x1, y1 = thing.box
    box = (
        float(np.clip(x0 - left, 0, w)),
        float(np.clip(y0 - top, 0, h)),
        float(np.clip(x1 - left, 0, w)),
        float(np.clip(y1 - top, 0, h)),
    )
    kept = (box[2] - box[0]) * (box[3] - box[1]) / max((x1 - x0) * (y1 - y0), 1e-9)
    mask = None if thing.mask is None else thing.mask[top : top + h, left : left + w]
    return replace(thing, box=box, mask=mask, ignored=thing.ignored or kept < 0.5)

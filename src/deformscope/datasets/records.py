"""Photos, objects and classes of an annotation file: its entries, checked one by one, become records or problems."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from ..errors import DeformscopeError, DeformscopeWarning
from ..photo import read
from .photos import Box, Header, PhotoFiles, header, inside, told, turned_box, turned_mask
from .values import (
    Identifier,
    Index,
    MalformedError,
    Segmentation,
    checked,
    decode,
    flag,
    identifier,
    number,
    rank,
    shown,
    text,
    whole,
)

OUTSIDE = 1.0
"""Px by which a box may extend beyond its photo without being an error; it is clipped. Rounding can cause this."""
LEAST = 1e-3
"""Px of the shortest side of a box, also after clipping; float32 cannot represent less."""


@dataclass(frozen=True)
class Problem:
    """A problem of an annotation or photo."""

    file_name: str
    """Name of the photo, or the place in the file (``annotations[17]``) if that is not known."""
    annotation: Identifier | None
    what: str

    def __str__(self) -> str:
        of = "" if self.annotation is None else f", annotation {shown(self.annotation)}"
        return f"{shown(self.file_name)}{of}: {self.what}"


@dataclass(frozen=True)
class Category:
    """A class of objects."""

    id: Identifier
    name: str


@dataclass(frozen=True, slots=True)  # a large data set has a million objects
class CocoObject:
    """One annotated object."""

    id: Identifier
    label: int
    """Index of its category, sorted by id."""
    bbox: Box
    """x, y, width, height as annotated, in px of the upright photo; may extend beyond it by a pixel from rounding."""
    ignored: bool
    """Counts neither as right nor as wrong: a crowd (``iscrowd``, ``ignore``) or a difficult object (VOC's
    ``difficult``)."""
    noted_area: float | None = None
    """``area``, px²; None if not given."""
    segmentation: Segmentation = None
    """As annotated, in the pixels of the annotation; None if not given."""


@dataclass(frozen=True)
class CocoPhoto:
    """One photo and the objects on it.

    Example:
        >>> from deformscope.datasets import read_coco
        >>> photo = read_coco("DATA", "val").photos[0]
        >>> photo.read().shape, photo.corners(photo.objects[0])
        ((300, 300, 3), (70.0, 20.0, 300.0, 260.0))
    """

    id: Identifier
    file_name: str
    path: Path
    size: tuple[int, int]
    """Height and width of the upright photo, px."""
    turn: int
    """The EXIF orientation that turns the annotations upright; 1 if they are upright."""
    objects: tuple[CocoObject, ...]

    def read(self) -> UInt8[np.ndarray, "h w 3"]:
        """Read the photo, upright. Raises DeformscopeError with the file's name if it is damaged."""
        array = read(self.path)
        if array.shape[:2] != self.size:
            (h, w), (nh, nw) = array.shape[:2], self.size
            raise DeformscopeError(f"{self.path}: {w}×{h} px, and {nw}×{nh} before; get the file again")
        return array

    def corners(self, one: CocoObject) -> tuple[float, float, float, float]:
        """The box of an object, x0, y0, x1, y1, clipped to the photo, px."""
        (height, width), (x, y, w, h) = self.size, one.bbox
        return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))

    def mask(self, one: CocoObject) -> Bool[np.ndarray, "h w"] | None:
        """The mask of an object; None if it has none."""
        if one.segmentation is None:
            return None
        noted = self.size[::-1] if self.turn >= 5 else self.size
        return turned_mask(decode(one.segmentation, noted), self.turn)

    def area(self, one: CocoObject) -> float:
        """The annotated area, or that of the mask, or of the box, px²."""
        if one.noted_area is not None:
            return one.noted_area
        mask = self.mask(one)
        return one.bbox[2] * one.bbox[3] if mask is None else float(mask.sum())


@dataclass(frozen=True)
class Image:
    """An entry of ``images``."""

    id: Identifier
    file_name: str
    noted: tuple[int, int] | None
    """Height and width, px; None if not given."""


@dataclass(frozen=True)
class Frame:
    """A photo that was found, and the orientation in which it was annotated."""

    path: Path
    header: Header
    as_stored: bool
    """Annotated in the pixels as stored in the file, not upright."""

    @property
    def noted(self) -> tuple[int, int]:
        """Height and width as annotated, px."""
        return self.header.stored if self.as_stored else self.header.upright

    @property
    def turn(self) -> int:
        """The EXIF orientation that turns the annotations upright."""
        return self.header.orientation if self.as_stored else 1


@lru_cache(maxsize=1024)
def say(message: str) -> None:
    """Warn once per process. (Reading photos resets Python's own record of warnings.)"""
    warnings.warn(message, DeformscopeWarning, stacklevel=2)


def categories(entries: Sequence[Any], file: Path) -> tuple[Category, ...]:
    """The categories by id. Raises DeformscopeError if one is invalid, since objects would have no class."""
    found = []
    for place, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        own, name = identifier(fields.get("id")), fields.get("name")
        name = text(str(name) if number(name) is not None else name)
        if own is None or name is None:
            raise DeformscopeError(f"{file}: categories[{place}]: {shown(entry)}; expected an id and a name")
        found.append(Category(own, name))
    for key in ("id", "name"):
        twice = [value for value, count in Counter(getattr(one, key) for one in found).items() if count > 1]
        if twice:
            raise DeformscopeError(f"{file}: categories: the {key} {shown(twice[0])} occurs more than once; rename one")
    if not found:
        raise DeformscopeError(f"{file}: categories: none; expected the classes of the objects")
    return tuple(sorted(found, key=lambda one: rank(one.id)))


def images(entries: Sequence[Any], problems: list[Problem]) -> list[Image | None]:
    """The entries that have an id, in order; None, and a problem, for invalid ones."""
    found: list[Image | None] = []
    for place, entry in enumerate(entries):
        try:
            found.append(_image(entry))
        except MalformedError as error:
            name = text(entry.get("file_name")) if isinstance(entry, dict) else None
            problems.append(Problem(name or f"images[{place}]", None, str(error)))
            found.append(None)
    counts = Counter(image.id for image in found if image is not None)
    for place, image in enumerate(found):
        # All of them are left out, since it is not known whose objects they are.
        if image is not None and counts[image.id] > 1:
            problems.append(Problem(image.file_name, None, f"its image id {shown(image.id)} occurs more than once"))
            found[place] = None
    return found


def frames(found: Sequence[Image | None], folder: Path, file: Path, problems: list[Problem]) -> list[Frame | None]:
    """The photo of each image, opened; None, and a problem, if there is none, its size is another, or another image
    has the same.

    Warns once if it cannot be told from the size whether annotations are turned by EXIF too, and once if files have
    other names than in the annotations.
    """
    headers: list[tuple[Path, Header, bool | None] | None] = []
    files = PhotoFiles(folder)
    for image in found:
        try:
            headers.append(None if image is None else _opened(image, files))
        except MalformedError as error:
            assert image is not None
            problems.append(Problem(image.file_name, None, str(error)))
            headers.append(None)
    if files.renamed:
        name, first = next(iter(files.renamed.items()))
        say(
            f"{file}: {len(files.renamed)} names differ from those of the files in slashes, case, %-codes or Unicode "
            f"form ({shown(name)}: {shown(str(first.relative_to(folder)))}…); the files are taken"
        )
    paths = [None if one is None else os.path.normpath(one[0]) for one in headers]
    counts = Counter(paths)
    for place, (image, own_path) in enumerate(zip(found, paths, strict=True)):
        # All of them are left out, since each may have only a part of the photo's objects.
        if image is not None and own_path is not None and counts[own_path] > 1:
            own = f"image {shown(image.id)}: {counts[own_path]} images have this file"
            problems.append(Problem(image.file_name, None, f"{own}; keep one of them, with all objects"))
            headers[place] = None
    telling = {one[2] for one in headers if one is not None and one[2] is not None}
    as_stored = telling == {True}  # images that tell decide for the others
    unsure = [one[0] for one in headers if one is not None and one[2] is None and one[1].orientation > 1]
    if unsure:
        taken = "as the files store them, as the other turned photos' are" if as_stored else "upright"
        say(
            f"{file}: EXIF turns {len(unsure)} photos ({shown(unsure[0].name)}…) whose noted size does not tell "
            f"whether their annotations are turned too; they are taken to be in the photos {taken}"
        )
    return [None if one is None else _frame(*one, as_stored) for one in headers]


def objects(
    entries: Sequence[Any],
    ids: Index,
    found: Sequence[tuple[Image, Frame] | None],
    labels: Sequence[Category],
    masks: bool,
    problems: list[Problem],
) -> list[list[CocoObject]]:
    """The objects of each image. ``ids`` has every image of the file, ``found`` those that can be used."""
    by_image: list[list[CocoObject]] = [[] for _ in found]
    known = Index([category.id for category in labels])
    seen: set[Identifier] = set()
    for place, entry in enumerate(entries):
        fields = entry if isinstance(entry, dict) else {}
        own = identifier(fields.get("id"))
        index = ids.find(fields.get("image_id"))
        target = None if index is None else found[index]
        unknown = f"image {shown(fields['image_id'])}" if "image_id" in fields else f"annotations[{place}]"
        name = unknown if target is None else target[0].file_name
        try:
            if not isinstance(entry, dict):
                raise MalformedError(f"{shown(entry)}: expected an object")
            if own is None:
                raise MalformedError(f"id {_noted(fields, 'id')}: expected a number or a text")
            if own in seen:
                raise MalformedError("its id occurs more than once")
            seen.add(own)
            if index is None:
                raise MalformedError("no such image among images" if "image_id" in fields else "image_id missing")
            if target is None:  # the image is the problem
                continue
            one, wrong = _object(fields, own, target[1], known, masks)
            if wrong is not None:
                problems.append(Problem(name, own, wrong))
            if one is not None:
                by_image[index].append(one)
        except MalformedError as error:
            nameless = name if name == f"annotations[{place}]" else f"{name}, annotations[{place}]"
            problems.append(Problem(name if own is not None else nameless, own, str(error)))
    return by_image


def _image(entry: Any) -> Image:
    if not isinstance(entry, dict):
        raise MalformedError(f"{shown(entry)}: expected an object")
    own, name = identifier(entry.get("id")), text(entry.get("file_name"))
    if own is None:
        raise MalformedError(f"image id {_noted(entry, 'id')}: expected a number or a text")
    if name is None:
        raise MalformedError(f"file_name {_noted(entry, 'file_name')}: expected a text")
    sides = [entry.get(key) for key in ("height", "width")]
    if sides == [None, None]:
        return Image(own, name, None)
    height, width = (whole(side) for side in sides)
    if height is None or width is None:
        noted = " and ".join(f"{key} {_noted(entry, key)}" for key in ("height", "width"))
        raise MalformedError(f"{noted}: expected whole numbers, at least 1")
    return Image(own, name, (height, width))


def _opened(image: Image, files: PhotoFiles) -> tuple[Path, Header, bool | None]:
    if inside(files.folder, image.file_name) is None:
        raise MalformedError(f"outside the folder of photos, {files.folder}; annotations may name only what is in it")
    path = files.find(image.file_name)
    found = header(path)
    return path, found, told(found, image.noted)


def _frame(path: Path, found: Header, says: bool | None, others: bool) -> Frame:
    return Frame(path, found, found.orientation > 1 and (others if says is None else says))


def _object(
    fields: Mapping[str, Any], own: Identifier, frame: Frame, known: Index, masks: bool
) -> tuple[CocoObject | None, str | None]:
    """The object, if it can be used, and the problem of its segmentation."""
    label = known.find(fields.get("category_id"))
    if label is None:
        raise MalformedError(f"category_id {_noted(fields, 'category_id')}: unknown")
    box = _box(fields, frame.noted)
    flags = {key: flag(fields.get(key)) for key in ("iscrowd", "ignore", "difficult")}
    for key, value in flags.items():
        if value is None:
            raise MalformedError(f"{key} {_noted(fields, key)}: expected 0 or 1")
    ignored = any(flags.values())
    area = number(fields.get("area"))
    most = frame.noted[0] * frame.noted[1]
    # Some round up, and COCO's evaluation leaves out what is larger than 10¹⁰ px².
    if (area is None and fields.get("area") is not None) or (area is not None and not 0 <= area <= 1.1 * most):
        raise MalformedError(f"area {_noted(fields, 'area')}: expected px², at least 0, at most the photo's {most}")
    segmentation: Segmentation = None
    wrong = None
    try:
        segmentation = checked(fields.get("segmentation"), frame.noted)
    except MalformedError as error:
        wrong = str(error)
    if segmentation is None and masks and not ignored:
        return None, wrong or "no segmentation, where masks are needed"
    turned = turned_box(box, frame.header.stored, frame.turn)
    return CocoObject(own, label, turned, ignored, area, segmentation), wrong


def _box(fields: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    noted = fields.get("bbox")
    sides = [number(value) for value in noted] if isinstance(noted, list) and len(noted) == 4 else [None]
    if None in sides:
        raise MalformedError(f"bbox {_noted(fields, 'bbox')}: expected four numbers x, y, width, height")
    x, y, w, h = (float(value) for value in sides if value is not None)
    if w < LEAST or h < LEAST:
        raise MalformedError(f"bbox {shown(noted)}: zero area")
    height, width = size
    inside = min(x + w, width) - max(x, 0) >= LEAST and min(y + h, height) - max(y, 0) >= LEAST
    if not inside or min(x, y) < -OUTSIDE or x + w > width + OUTSIDE or y + h > height + OUTSIDE:
        raise MalformedError(f"bbox {shown(noted)}: outside the photo, {width}×{height} px")
    return x, y, w, h


def _noted(fields: Mapping[str, Any], key: str) -> str:
    return shown(fields[key]) if key in fields else "missing"

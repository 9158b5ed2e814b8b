"""Annotated photos in COCO's layout, read and checked in the same way for training, scoring and evaluation.

A broken annotation that is found at step 3,000 costs hours, so everything that can be checked without decoding the
photos is checked first. Boxes and masks are those of the upright photo, as returned by :func:`deformscope.photo.read`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import DeformscopeError
from ..files import sha256
from . import records
from .photos import annotation_file, photo_folder
from .records import Category, CocoObject, CocoPhoto, Problem
from .values import Index, identifier, rank, run_lengths, shown

SHOWN = 5
"""Number of problems named in a message."""
Broken = Literal["refuse", "skip"]
"""What to do with broken annotations and photos: raise an error, or leave them out."""


@dataclass(frozen=True)
class CocoDataset:
    """One split of a data set.

    Example:
        >>> dataset = read_coco("DATA", "val")
        >>> len(dataset.photos), dataset.names, dataset.problems
        (3, ('cat',), ())
    """

    annotations: Path
    folder: Path
    """The folder to which the names of photos are relative."""
    photos: tuple[CocoPhoto, ...]
    """Sorted by id; texts of integers count as integers."""
    categories: tuple[Category, ...]
    """Sorted by id."""
    problems: tuple[Problem, ...] = ()
    """What was left out (``broken="skip"``)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories."""
        return tuple(category.name for category in self.categories)

    @property
    def digest(self) -> str:
        """SHA-256 of the annotation file."""
        return sha256(self.annotations)

    def truth(self, photos: Iterable[CocoPhoto] | None = None) -> dict[str, Any]:
        """Photos (all, or those given) and their objects in COCO's format, with the ids of the file."""
        chosen = self.photos if photos is None else tuple(photos)
        images = [
            {"id": one.id, "file_name": one.file_name, "height": one.size[0], "width": one.size[1]} for one in chosen
        ]
        annotations = [self._annotation(photo, one) for photo in chosen for one in photo.objects]
        return {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
        }

    def _annotation(self, photo: CocoPhoto, one: CocoObject) -> dict[str, Any]:
        noted: dict[str, Any] = {
            "id": one.id,
            "image_id": photo.id,
            "category_id": self.categories[one.label].id,
            "bbox": list(one.bbox),
            "area": photo.area(one),
            "iscrowd": int(one.ignored),
        }
        if one.segmentation is None:
            return noted
        mask = None if photo.turn == 1 else photo.mask(one)
        return noted | {"segmentation": one.segmentation if mask is None else run_lengths(mask)}


def read_coco(data: Path | str, split: str = "val", *, broken: Broken = "refuse", masks: bool = False) -> CocoDataset:
    """Read a split of a folder in COCO's layout, or an annotation file that lies in one, and check all of it.

    Annotations are found as :func:`.photos.annotation_file` says, photos as :func:`.photos.photo_folder`. Taken are
    UTF-8 and UTF-16, with a byte-order mark or without; ids that are numbers or texts; numbers written as texts; a null
    ``iscrowd``; a missing ``area``; missing sizes, which are then the photos'; names that differ from the file's in
    slashes, case, %-codes or Unicode form, where only one file is similar. With ``masks`` every object but a crowd
    needs a segmentation; one that is malformed is always a problem.

    Raises DeformscopeError, naming files and annotations, when anything is broken; with ``broken="skip"`` that is left
    out (of an object whose segmentation alone is broken, and not needed, the segmentation), and a DeformscopeWarning
    says so.

    Example:
        >>> dataset = read_coco("DATA", "val")
        >>> [dataset.names[one.label] for one in dataset.photos[0].objects]
        ['cat']
    """
    if broken not in ("refuse", "skip"):
        raise DeformscopeError(f"broken={broken!r}: expected 'refuse' or 'skip'")
    file = annotation_file(Path(data).expanduser(), split)
    content = _content(file)
    categories = records.categories(content["categories"], file)
    problems: list[Problem] = []
    images = records.images(content["images"], problems)
    folder = photo_folder(file, [image.file_name for image in images if image is not None])
    frames = records.frames(images, folder, file, problems)
    usable = [None if i is None or f is None else (i, f) for i, f in zip(images, frames, strict=True)]
    # Of broken ones too, so that an object of a broken image is not one of an unknown image.
    ids = Index([identifier(entry.get("id")) if isinstance(entry, dict) else None for entry in content["images"]])
    objects = records.objects(content["annotations"], ids, usable, categories, masks, problems)
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    message = f"{file}: {len(problems)} broken annotations or photos: {'; '.join(map(str, problems[:SHOWN]))}{more}"
    if problems and broken == "refuse":
        raise DeformscopeError(f"{message}; correct them, or leave them out with broken=skip")
    if problems:
        records.say(f"{message}; they are left out")
    photos = [_photo(*one, own) for one, own in zip(usable, objects, strict=True) if one is not None]
    photos.sort(key=lambda photo: rank(photo.id))
    if not photos:
        raise DeformscopeError(f"{file}: no photo to use; expected some among images")
    return CocoDataset(file, folder, tuple(photos), categories, tuple(problems))


def _photo(image: records.Image, frame: records.Frame, objects: list[CocoObject]) -> CocoPhoto:
    return CocoPhoto(image.id, image.file_name, frame.path, frame.header.upright, frame.turn, tuple(objects))


class RepeatedKeyError(ValueError):
    """A key of a JSON object occurs more than once, with different values."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which Python would keep the last of a key's values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                own = f" (id {shown(found['id'])})" if "id" in found and key != "id" else ""
                raise RepeatedKeyError(f"the key {shown(key)} occurs more than once in one object{own}")
    return found


def _content(file: Path) -> dict[str, Any]:
    """The file's JSON, which has the three lists."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=_unique)  # finds out the encoding
    except RepeatedKeyError as error:
        raise DeformscopeError(f"{file}: {error}; keep one of its values") from None
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise DeformscopeError(
            f"{file}: no COCO annotations ({type(error).__name__}: {error}); expected JSON; get it again"
        ) from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            there = shown(content.get(key)) if isinstance(content, dict) else shown(content)
            raise DeformscopeError(
                f"{file}: no COCO annotations ({key}: {there}); expected an object with the lists images, annotations "
                "and categories"
            )
    return content

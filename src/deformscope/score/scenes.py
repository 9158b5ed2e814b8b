"""Annotated photos: their objects, off-centre crops, and the lattice of places on which metrics are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ..datasets.coco import Broken, read_coco
from ..datasets.records import CocoPhoto
from ..errors import DeformscopeError

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

    photo: Array
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
    images: tuple[CocoPhoto, ...]
    names: tuple[str, ...]
    """Of the classes."""

    def scene(self, index: int) -> Scene:
        """Read one photo and its objects. Raises DeformscopeError, naming the file, where it cannot be read."""
        photo = self.images[index]
        things = [
            Thing(self.names[one.label], photo.corners(one), photo.mask(one), one.ignored) for one in photo.objects
        ]
        return Scene(photo.read(), tuple(things))

    def scene_or_reason(self, index: int) -> Scene | str:
        """A photo and its objects, or the reason why it cannot be read."""
        try:
            return self.scene(index)
        except DeformscopeError as error:
            return str(error)


def open_folder(data: Path | str | Photos, split: str = "val", seed: int = 0, broken: Broken = "refuse") -> Photos:
    """The annotated photos of a folder in COCO's layout or of an annotation file in one, as
    :func:`~deformscope.datasets.read_coco` finds and checks them, in the order of the seed.

    Photos that are open already are returned as they are."""
    if isinstance(data, Photos):
        return data
    dataset = read_coco(data, split, broken=broken)
    order = np.random.default_rng(seed).permutation(len(dataset.photos))
    return Photos(dataset.folder, dataset.annotations, tuple(dataset.photos[i] for i in order), dataset.names)


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


ACROSS = 96
"""Largest number of places along the shorter side; the places are the same for every layer and null."""
RINGS = 12
"""Number of rings around the photo's centre, each with the same number of places."""


@dataclass(frozen=True)
class Counted:
    """The c places that are :attr:`Marks.valid`."""

    places: Int[Array, " c"]
    inside: Bool[Array, " c"]
    ring: Int[Array, " c"]


@dataclass(frozen=True)
class Marks:
    """The p = rows · columns places of a photo that its metrics are computed on."""

    points: Float[Array, "p 2"]
    """(y, x) photo px: the centres of every n-th pixel, n by :data:`ACROSS`."""
    shape: tuple[int, int]
    """Rows and columns."""
    things: tuple[Thing, ...]
    """The objects that count."""
    on: Bool[Array, "m p"]
    """Which places lie on which of the m counted objects: on its mask if all have masks, else in its box."""
    ignored: Bool[Array, "i p"]
    """Which places lie on which of the ignored objects."""
    ring: Int[Array, " p"]
    """The ring, 0 the innermost, by distance from the photo's centre in units of its sides."""
    masked: bool

    @cached_property
    def inside(self) -> Bool[Array, " p"]:
        """Places on any object."""
        return np.asarray(self.on.any(axis=0))

    @cached_property
    def valid(self) -> Bool[Array, " p"]:
        """Places that count: all except those that are only on an ignored object."""
        return np.asarray(~self.ignored.any(axis=0) | self.inside)

    @cached_property
    def objects(self) -> Bool[Array, "m+i p"]:
        """The objects that count, then the ignored ones."""
        return np.concatenate([self.on, self.ignored])

    @cached_property
    def places(self) -> list[Int[Array, " _"]]:
        """The places on each of :attr:`objects`."""
        return [np.flatnonzero(on) for on in self.objects]

    @property
    def rows(self) -> Float[Array, " rows"]:
        """y of the rows, px."""
        return self.points[:: self.shape[1], 0]

    @property
    def columns(self) -> Float[Array, " columns"]:
        """x of the columns, px."""
        return self.points[: self.shape[1], 1]

    @cached_property
    def counted(self) -> Counted:
        """What the metrics of a photo need of the places that count."""
        places = np.flatnonzero(self.valid)
        ring = self.ring.astype(np.int16)  # which are sorted faster
        return Counted(places, self.inside[places], ring[places])

    @property
    def are_ignored(self) -> Bool[Array, " m+i"]:
        """Which of :attr:`objects` are ignored."""
        return np.arange(len(self.on) + len(self.ignored)) >= len(self.on)


def mark(scene: Scene) -> Marks:
    """The lattice of a scene."""
    height, width = scene.size
    step = max(1, round(min(height, width) / ACROSS))
    y, x = (np.arange(step // 2, length, step) + 0.5 for length in (height, width))
    points = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2)
    things = scene.counted
    masked = bool(things) and all(thing.mask is not None for thing in things)
    ignored = [t for t in scene.things if t.ignored and min(t.size) >= 1]
    bare = [thing if masked else Thing(thing.category, thing.box) for thing in things]
    distance = (((points / np.array([height, width])) - 0.5) ** 2).sum(axis=-1)
    rank = distance.argsort(kind="stable").argsort(kind="stable")
    return Marks(
        points=points,
        shape=(len(y), len(x)),
        things=things,
        on=_stacked(bare, points),
        ignored=_stacked(ignored, points),
        ring=rank * RINGS // len(points),
        masked=masked,
    )


def _stacked(things: list[Thing], points: Array) -> Array:
    return np.array([thing.covers(points) for thing in things], dtype=bool).reshape(len(things), len(points))

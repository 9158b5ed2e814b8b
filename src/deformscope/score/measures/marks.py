"""The lattice of places of a photo on which metrics are computed, and which objects they lie on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

from .annotations import Scene, Thing

Array = np.ndarray
ACROSS = 96
"""Largest number of places along the shorter side; the places are the same for every layer and null."""
RINGS = 12
"""Number of rings around the photo's centre, each with the same number of places."""


@dataclass(frozen=True)
class Counted:
    """The c places that are :attr:`Marks.valid`."""

    places: Int[Array, " c"]
    inside: Bool[Array, " c"]
    in_box: Bool[Array, " c"]
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
    boxed: Bool[Array, "m p"]
    """Which places lie in which of their boxes."""
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
    def in_box(self) -> Bool[Array, " p"]:
        """Places in any object's box."""
        return np.asarray(self.boxed.any(axis=0))

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
        return Counted(places, *(each[places] for each in (self.inside, self.in_box, ring)))

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
        boxed=_stacked([Thing(thing.category, thing.box) for thing in things], points),
        ignored=_stacked(ignored, points),
        ring=rank * RINGS // len(points),
        masked=masked,
    )


def _stacked(things: list[Thing], points: Array) -> Array:
    return np.array([thing.covers(points) for thing in things], dtype=bool).reshape(len(things), len(points))

"""The records of a run, one a photo, and all of them as columns of numbers, one for each layer and source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray as Array

from ..datasets.values import Identifier
from ..metrics.matching import IOUS, Matches

IMAGE = ("auroc", "auroc_ring", "corloc_segment", "pointing", "pointing_ring")
"""What is measured of a photo."""
THINGS = ("sink_distance", "cosine", "moved_distance", "r_centre", "r_largest")
"""What is measured of each object."""
LEVELS = tuple(np.round(np.arange(-1.0, 4.01, 0.25), 2).tolist())
"""Thresholds of the divergence, in units of its rms in the image; 0 is the published one."""
PUBLISHED = LEVELS.index(0.0)
NULLS = ("fresh", "shuffled", "noise", "centre", "zero", "filled")
"""Fresh offset convolutions, or attention as it begins training; another image's offsets; noise of the same spectrum;
the photo's centre; no offsets; the detected boxes, filled."""
NAMES = {
    "field": "the offsets",
    "fresh": "fresh offsets",
    "shuffled": "another photo's offsets",
    "noise": "noise",
    "centre": "the photo's centre",
    "zero": "no offsets",
    "filled": "the detected boxes, filled",
}
MEANING = {
    "field": "the offsets",
    "fresh": "the same network with freshly drawn offset convolutions; attention as it begins training",
    "shuffled": "the offsets that another image had",
    "noise": "noise with the offsets' own spectrum",
    "centre": "the photo's centre, whatever is on it",
    "zero": "no offsets at all: chance",
    "filled": "the detected boxes, filled; for comparison",
}


Bits = tuple[tuple[int, ...], tuple[int, ...]]
"""Of each detection, as bit masks over the IoU thresholds: whether it is a hit, and whether it is ignored."""


def bits(matched: Matches) -> Bits:
    """The bits of each detection, in order."""
    powers = 2 ** np.arange(len(IOUS))
    return tuple((powers @ matched.hit).tolist()), tuple((powers @ matched.skipped).tolist())


def short(value: float) -> float:
    """Round to five digits, which keeps records small."""
    return float(f"{float(value):.5g}")


@dataclass(frozen=True)
class Matched:
    """The segments of a source, best first, and as bit masks over the IoU thresholds what they matched."""

    scores: tuple[float, ...]
    hit: tuple[int, ...]
    skipped: tuple[int, ...]

    def matches(self, objects: int) -> Matches:
        """The same as arrays, on a photo with so many objects."""
        bits = 2 ** np.arange(len(IOUS))[:, None]
        hit, skipped = (np.array(those, dtype=int)[None] & bits > 0 for those in (self.hit, self.skipped))
        return Matches(np.array(self.scores, dtype=float), hit, skipped, objects)


@dataclass(frozen=True)
class Measured:
    """What is measured of one source (the offsets or a null) at one layer of a photo."""

    image: Mapping[str, float]
    """By :data:`IMAGE`."""
    things: Mapping[str, tuple[float, ...]]
    """By :data:`THINGS`, a number per object."""
    iou: tuple[float, ...]
    """At each of :data:`LEVELS`."""
    segments: Matched


class Thing(NamedTuple):
    """An object: its class, its COCO size (``S``, ``M``, ``L``), height and width in px."""

    category: str
    area_class: str
    height: float
    width: float


@dataclass(frozen=True)
class View:
    """What is measured of a whole photo, or of its off-centre crop."""

    things: tuple[Thing, ...]
    masked: bool
    """Whether all objects have masks."""
    area: float
    """The objects' share of it."""
    layers: Mapping[str, Mapping[str, Measured]]
    """By layer, then source; nulls that do not depend on a layer are in layer ``*``."""


@dataclass(frozen=True)
class Record:
    """What a run knows of one photo."""

    index: int
    """In the random order of the run."""
    image: Identifier
    file: str
    status: str = "scored"
    note: str = ""
    """Why it has no views."""
    broken: tuple[str, ...] = ()
    """Layers with NaN or infinite offsets."""
    views: Mapping[str, View] = field(default_factory=dict)
    """``whole`` and ``crop``."""

    def line(self) -> str:
        """The record as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_line(cls, line: str) -> Record | None:
        """The record that :meth:`line` wrote; None for a line that was cut off."""
        try:
            content = json.loads(line)
            views = {name: _view(one) for name, one in content.get("views", {}).items()}
            known = {name: content[name] for name in ("index", "image", "file", "status")}
            return cls(**known, note=content.get("note", ""), broken=tuple(content.get("broken", ())), views=views)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


def _view(content: Mapping[str, Any]) -> View:
    layers = {
        layer: {source: _measured(one) for source, one in sources.items()}
        for layer, sources in content["layers"].items()
    }
    return View(tuple(Thing(*one) for one in content["things"]), content["masked"], content["area"], layers)


def _measured(content: Mapping[str, Any]) -> Measured:
    found = content["segments"]
    return Measured(
        {name: content["image"][name] for name in IMAGE},
        {name: tuple(content["things"][name]) for name in THINGS},
        tuple(content["iou"]),
        Matched(*(tuple(found[key]) for key in ("scores", "hit", "skipped"))),
    )


def read_records(folder: Path, total: int | None = None) -> Iterator[Record]:
    """The records of a run, from all its processes: the first of each of the ``total`` photos."""
    met: set[int] = set()
    for path in sorted(folder.glob("records*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = Record.of_line(line)
                if record is not None and record.index not in met and (total is None or record.index < total):
                    met.add(record.index)
                    yield record


@dataclass(frozen=True)
class Column:
    """One source (the field or a null) at one layer in one view, over n photos with o objects; NaN where missing."""

    image: dict[str, Float[Array, " n"]]
    iou: Float[Array, "n t"]
    """At each of :data:`LEVELS`."""
    things: dict[str, Float[Array, " o"]]
    matches: tuple[Matches, ...]


@dataclass(frozen=True)
class Table:
    """One view (whole photos, or off-centre crops) of a run."""

    index: Int[Array, " n"]
    """Index of each of the n photos in the random order of the run."""
    names: tuple[str, ...]
    """File names of the photos."""
    half: Bool[Array, " n"]
    """Which half of the photos each belongs to; what is fitted or chosen on one half is measured on the other."""
    quarter: Bool[Array, " n"]
    """Halves of the halves, for what is fitted after a layer was chosen."""
    masked: Bool[Array, " n"]
    area: Float[Array, " n"]
    owner: Int[Array, " o"]
    """Row of the photo of each object."""
    category: tuple[str, ...]
    area_class: tuple[str, ...]
    size: Float[Array, "o 2"]
    """Height and width, px."""
    columns: dict[str, dict[str, Column]]
    """By layer, then source; nulls that do not depend on a layer are in layer ``*``."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that were measured."""
        return tuple(layer for layer in self.columns if layer != "*")

    def column(self, layer: str, source: str) -> Column | None:
        """The column of a source for a layer; None if there is none."""
        return self.columns[layer].get(source) or self.columns.get("*", {}).get(source)


def table(records: Iterable[Record], view: str) -> Table:
    """The columns of one view, ordered by index. Records are packed one by one, to save memory."""
    rows: list[tuple[int, str, bool, float, int]] = []
    things: dict[int, tuple[Thing, ...]] = {}
    packed: dict[str, dict[str, dict[int, _Packed]]] = {}
    for record in records:
        one = record.views.get(view)
        if one is None:
            continue
        rows.append((record.index, record.file, one.masked, one.area, len(one.things)))
        things[record.index] = one.things
        for layer, sources in one.layers.items():
            for source, measured in sources.items():
                packed.setdefault(layer, {}).setdefault(source, {})[record.index] = _pack(measured, len(one.things))
    rows.sort()
    order = np.array([row[0] for row in rows], dtype=int)
    counts = np.array([row[4] for row in rows], dtype=int)
    objects = [thing for index in order.tolist() for thing in things[index]]
    return Table(
        index=order,
        names=tuple(row[1] for row in rows),
        half=order % 2 == 1,
        quarter=order // 2 % 2 == 1,
        masked=np.array([row[2] for row in rows], dtype=bool),
        area=np.array([row[3] for row in rows], dtype=float),
        owner=np.repeat(np.arange(len(rows)), counts),
        category=tuple(thing.category for thing in objects),
        area_class=tuple(thing.area_class for thing in objects),
        size=np.array([thing[2:] for thing in objects], dtype=float).reshape(-1, 2),
        columns={
            layer: {source: _column(ones, order, counts) for source, ones in sources.items()}
            for layer, sources in packed.items()
        },
    )


@dataclass(frozen=True)
class _Packed:
    """The metrics of one photo and source as small arrays."""

    image: Float[Array, " m"]
    """:data:`IMAGE`, then the IoU at each level."""
    things: Float[Array, "k o"]
    matches: Matches


def _pack(measured: Measured, objects: int) -> _Packed:
    image = [*(measured.image[name] for name in IMAGE), *measured.iou]
    things = np.array([measured.things[name] for name in THINGS], dtype=float).reshape(len(THINGS), objects)
    return _Packed(np.array(image, dtype=float), things, measured.segments.matches(objects))


def _column(ones: dict[int, _Packed], order: Array, counts: Array) -> Column:
    """The column of a source; NaN and no segments for photos without it."""
    width = len(IMAGE) + len(LEVELS)
    none = np.zeros((len(IOUS), 0), dtype=bool)
    unmatched = Matches(np.zeros(0), none, none, 0)
    nothing = [_Packed(np.full(width, np.nan), np.full((len(THINGS), count), np.nan), unmatched) for count in counts]
    photos = [ones.get(index, missing) for index, missing in zip(order.tolist(), nothing, strict=True)]
    image = np.stack([photo.image for photo in photos]) if photos else np.zeros((0, width))
    things = np.concatenate([np.zeros((len(THINGS), 0)), *(photo.things for photo in photos)], axis=1)
    return Column(
        image={name: image[:, i] for i, name in enumerate(IMAGE)},
        iou=image[:, len(IMAGE) :],
        things={name: things[i] for i, name in enumerate(THINGS)},
        matches=tuple(photo.matches for photo in photos),
    )

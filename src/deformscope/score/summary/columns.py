"""The records of a run as columns of numbers over all photos, one for each layer and source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ...metrics.matching import IOUS, Matches
from ..measures.measure import IMAGE, THINGS
from ..measures.segmentation import LEVELS

Array = np.ndarray
Record = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One source (the field or a null) at one layer in one view, over n photos with o objects; NaN where missing."""

    image: dict[str, Float[Array, " n"]]
    iou: Float[Array, "n t"]
    """At each of ``segmentation.LEVELS``."""
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


def read_records(folder: Path) -> Iterator[Record]:
    """The records of a run, from all its processes; incomplete lines are skipped."""
    for path in sorted(folder.glob("records*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "index" in record:
                    yield record


def table(records: Iterable[Record], view: str) -> Table:
    """The columns of one view, ordered by index. Records are packed one by one, to save memory."""
    rows: list[tuple[int, str, bool, float, int]] = []
    things: dict[int, list[list[Any]]] = {}
    packed: dict[str, dict[str, dict[int, _Packed]]] = {}
    for record in records:
        one = record.get("views", {}).get(view)
        if one is None:
            continue
        index = record["index"]
        rows.append((index, record["file"], one["masked"], one["area"], len(one["things"])))
        things[index] = one["things"]
        for layer, sources in one["layers"].items():
            for source, measured in sources.items():
                packed.setdefault(layer, {}).setdefault(source, {})[index] = _pack(measured, len(one["things"]))
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
        category=tuple(thing[0] for thing in objects),
        area_class=tuple(thing[1] for thing in objects),
        size=np.array([thing[2:4] for thing in objects], dtype=float).reshape(-1, 2),
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


def _pack(measured: dict[str, Any], objects: int) -> _Packed:
    image = [measured["image"][name] for name in IMAGE] + measured["iou"]
    things = np.array([measured["things"][name] for name in THINGS], dtype=float).reshape(len(THINGS), objects)
    found = measured["segments"]
    bits = 2 ** np.arange(len(IOUS))[:, None]
    hit, skipped = (np.array(found[key], dtype=int)[None] & bits > 0 for key in ("hit", "skipped"))
    return _Packed(
        np.array(image, dtype=float), things, Matches(np.array(found["scores"], dtype=float), hit, skipped, objects)
    )


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

"""Metrics of one view of a photo: of the offsets of every layer, and of every null in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...fields.cell_maps import CellMaps
from ...fields.segments import arrivals
from . import nulls
from .annotations import Scene
from .inference import Maps, Seen
from .marks import Marks, mark
from .measure import Measured, central_segment, filled_segments, found_segments, measure


@dataclass(frozen=True)
class Task:
    """The input for the metrics of one view of a photo: small arrays, which can be sent to a worker process."""

    scene: Scene
    field: Seen
    fresh: Maps
    other: Maps
    seed: int


def measured(task: Task) -> dict[str, Any]:
    """The metrics of every layer and null of one view; the nulls that do not depend on a layer are in layer ``*``."""
    marks = mark(task.scene)
    layers = {"*": _without_layer(task, marks)} | {key: {} for key in task.field.maps}
    for group in _alike(_sources(task)):
        maps = list(group.values())
        arrived = arrivals(maps)
        results = measure(maps, marks, found_segments(maps, marks, arrived), arrived)
        for (layer, source), one in zip(group, results, strict=True):
            layers[layer][source] = one
    return {
        "things": [[t.category, t.area_class, round(t.size[0], 2), round(t.size[1], 2)] for t in marks.things],
        "masked": marks.masked,
        "area": round(float(marks.inside[marks.valid].mean()), 6) if marks.valid.any() else float("nan"),
        "layers": layers,
    }


def _without_layer(task: Task, marks: Marks) -> dict[str, Measured]:
    size, boxes, scores = task.scene.size, task.field.boxes, task.field.scores
    centre, zero, filled = nulls.centre(size), nulls.zero(size), nulls.filled(size, boxes, scores)
    segments = {
        "centre": central_segment(centre, marks),
        "zero": None,
        "filled": filled_segments(marks, boxes, scores),
    }
    results = measure([centre, zero], marks, [segments["centre"], segments["zero"]])
    results += measure([filled], marks, [segments["filled"]])
    return dict(zip(segments, results, strict=True))


def _sources(task: Task) -> dict[tuple[str, str], CellMaps]:
    """The offsets and the nulls that depend on a layer, by layer and source."""
    sources = {}
    for number, (layer, maps) in enumerate(task.field.maps.items()):
        sources[layer, "field"] = maps
        if layer in task.fresh:
            sources[layer, "fresh"] = nulls.as_strong(task.fresh[layer], maps)
        if layer in task.other:
            sources[layer, "shuffled"] = nulls.shuffled(maps, task.other[layer])
        random = np.random.default_rng([task.seed, number])
        sources[layer, "noise"] = nulls.noise(maps, random, task.field.per_cell[layer])
    return sources


def _alike(sources: dict[tuple[str, str], CellMaps]) -> list[dict[tuple[str, str], CellMaps]]:
    """Groups of sources whose cells lie in the same places, to be measured together."""
    groups: dict[Any, dict[tuple[str, str], CellMaps]] = {}
    for key, maps in sources.items():
        groups.setdefault((maps.div.shape, maps.origin, maps.step), {})[key] = maps
    return list(groups.values())

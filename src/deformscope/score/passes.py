"""The forward passes of a run, and what is measured of each: a detector and its fresh copy on photos and crops of them.

Freshly drawn offset convolutions react to what a photo shows, and so the copy is run. Freshly initialised attention
looks the same way whatever it sees, and is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..analysis import Analysis
from ..errors import DeformscopeError, NoDeformableCall
from ..fields import attention_start
from ..fields.cell_maps import CellMaps, finite
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..fields.moments import encoder_fields, with_encoders
from ..fields.stack import DEEPEST, composed, upstream
from ..recording.capture import capture
from . import nulls
from .measures import central_segment, filled_segments, found_segments, measure
from .records import Measured, Record, Thing, View
from .scenes import Marks, Photos, Scene, mark, off_centre

NEIGHBOURS = 8
"""Number of photos tried in turn for the offsets of another photo."""

Maps = dict[str, CellMaps]
"""By layer and offset group: ``layer`` or ``layer:group``."""


@dataclass(frozen=True)
class Seen:
    """Maps and detections of one photo."""

    maps: Maps
    per_cell: dict[str, tuple[float, float]]
    """Photo px (y, x) of an input cell, by layer and group."""
    boxes: np.ndarray
    scores: np.ndarray
    broken: tuple[str, ...] = ()
    """Layers with NaN or infinite offsets."""
    analysis: Analysis | None = None
    """The measured fields themselves."""
    fresh: Maps = field(default_factory=dict)
    """Of an encoder's attention, as freshly initialised on this photo."""


def look(
    detector: nn.Module, photo: np.ndarray, layers: Sequence[str] = (), *, together: bool = False, fresh: bool = False
) -> Seen:
    """Run the detector on one photo, and keep the layers that match one of the patterns and have finite offsets.

    Layers are deformable convolutions and the levels of encoders' attention, as figures show them. With ``together``
    each convolution is composed with up to two below it; with ``fresh`` :attr:`Seen.fresh` is known. Calls on regions
    of interest instead of the photo are left out.
    """
    with capture(detector, broken=True) as fields:
        detection = detector(photo)[0]
    maps: Maps = {}
    per_cell, broken, shown = {}, [], {}
    for name, one in with_encoders(fields, layers).items():
        if one.offset.shape[0] != 1:
            continue
        stack = upstream(fields, name, DEEPEST if together else 1) if name in fields else [one]
        if any(part.non_finite or not finite(part) for part in stack):
            broken.append(name)
            continue
        whole = composed(stack)
        groups = whole.offset.shape[1]
        shown[name] = whole.to("cpu")
        for group in range(groups):
            key = name if groups == 1 else f"{name}:{group}"
            maps[key], per_cell[key] = CellMaps.of(whole, group), whole.pixels_per_cell()
    start: Maps = {}
    for attention in fields.attention.values() if fresh else ():
        own = [name for name in maps if name.startswith(f"{attention.name}[")]
        levels = encoder_fields(attention_start.fresh(attention)) if own else []
        start |= {one.name: CellMaps.of(one) for one in levels if one.name in own}
    boxes, scores = detection["boxes"].double().cpu().numpy(), detection["scores"].double().cpu().numpy()
    found = {key: value.cpu() for key, value in detection.items() if isinstance(value, Tensor)}
    names, detector_name = getattr(detector, "class_names", ()), getattr(detector, "name", type(detector).__name__)
    analysis = Analysis(photo, Fields(shown), found, tuple(names), str(detector_name))
    return Seen(maps, per_cell, boxes, scores, tuple(broken), analysis, start)


@dataclass(frozen=True)
class Probed:
    """What a detector's offsets are made by."""

    convolutions: tuple[str, ...]
    """The names of the convolutions that compute offsets, which can be drawn anew."""
    others: frozenset[str]
    """Layers whose offsets something else makes."""


def probe(detector: nn.Module, layers: Sequence[str] = (), *, together: bool = False) -> Probed:
    """Find what makes the offsets of the ``layers``, by running the detector on a grey photo.

    Raises DeformscopeError where there is nothing to measure.
    """
    grey = np.full((96, 128, 3), 127, dtype=np.uint8)
    with capture(detector, broken=True) as fields:
        detector(grey)
    chosen = with_encoders(fields, layers)
    name = getattr(detector, "name", type(detector).__name__)
    if not chosen:
        raise NoDeformableCall(
            f"{name}: has only object queries ({', '.join(chosen.attention)}), which lie on no grid, so that neither "
            "divergence nor circles can be measured; studies/attention/measure.py measures queries, draw.queries shows "
            "them"
        )
    if together and not any(name in fields for name in chosen):
        raise DeformscopeError(f"composed=True: {name} has attention, of which each layer is measured alone")
    made = {
        name: {source for one in upstream(fields, name, DEEPEST if together else 1) for source in _convolutions(one)}
        for name in chosen
        if name in fields
    }
    everywhere = {source for one in fields.values() for source in _convolutions(one)}
    return Probed(tuple(sorted(everywhere)), frozenset(name for name, sources in made.items() if not sources))


def _convolutions(field: OffsetField) -> tuple[str, ...]:
    return () if field.source is None else field.source.convolutions


@dataclass(frozen=True)
class Task:
    """The input for the metrics of one view of a photo: small arrays, which can be sent to a worker process."""

    scene: Scene
    field: Seen
    fresh: Maps
    other: Maps
    seed: int


def measured(task: Task) -> View:
    """The metrics of every layer and null of one view; the nulls that do not depend on a layer are in layer ``*``."""
    marks = mark(task.scene)
    layers = {"*": _without_layer(task, marks)} | {key: {} for key in task.field.maps}
    for group in _alike(_sources(task)):
        maps = list(group.values())
        results = measure(maps, marks, found_segments(maps, marks))
        for (layer, source), one in zip(group, results, strict=True):
            layers[layer][source] = one
    things = tuple(Thing(t.category, t.area_class, round(t.size[0], 2), round(t.size[1], 2)) for t in marks.things)
    area = round(float(marks.inside[marks.valid].mean()), 6) if marks.valid.any() else float("nan")
    return View(things, marks.masked, area, layers)


def _without_layer(task: Task, marks: Marks) -> dict[str, Measured]:
    size, boxes, scores = task.scene.size, task.field.boxes, task.field.scores
    centre = nulls.centre(size)
    found = measure([centre, nulls.zero(size)], marks, [central_segment(centre, marks), None])
    found += measure([nulls.filled(size, boxes, scores)], marks, [filled_segments(marks, boxes, scores)])
    return dict(zip(("centre", "zero", "filled"), found, strict=True))


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


class ForwardPasses:
    """Runs a detector, and a copy of it with fresh offset convolutions, on photos.

    ``layers`` are patterns of names, none: all; ``composed`` takes each layer together with up to two below it.
    """

    def __init__(
        self,
        detector: nn.Module,
        photos: Photos,
        *,
        layers: Sequence[str] = (),
        crops: bool = True,
        composed: bool = False,
        seed: int = 0,
    ) -> None:
        self.detector, self.photos = detector, photos
        self.layers, self.crops, self.composed = layers, crops, composed
        made = probe(detector, layers, together=composed)
        self.others = made.others
        self.fresh = nulls.fresh_copy(detector, made.convolutions, seed) if made.convolutions else None
        self.seen: dict[int, Seen | None] = {}

    def of_photo(self, index: int, scene: Scene | str) -> tuple[Record, dict[str, Task], Analysis | None]:
        """The incomplete record of a photo, the task to be measured for each of its views, and its fields.

        ``scene`` comes from :meth:`.Photos.scene_or_reason`. The record of a photo that
        cannot be measured gives the reason.
        """
        image = self.photos.images[index]
        record = Record(index, image.id, image.file_name)
        if isinstance(scene, str):
            return replace(record, status="photo not readable", note=scene), {}, None
        if not scene.counted:
            return replace(record, status="no object", note="no object that counts is annotated"), {}, None
        tasks: dict[str, Task] = {}
        analysis = None
        try:
            views = {"whole": scene, "crop": off_centre(scene) if self.crops else None}
            for view, one in views.items():
                if one is None or not one.counted:
                    continue
                seen = self._look(self.detector, one, fresh=True)
                fresh = self._redrawn(one) | seen.fresh
                # Workers and later photos need only the maps.
                seen, whole = replace(seen, analysis=None, fresh={}), seen.analysis
                if view == "whole":
                    analysis = whole
                    self.seen = {k: v for k, v in self.seen.items() if k > index - NEIGHBOURS} | {index: seen}
                    record = replace(record, broken=seen.broken)
                # Only the photo's size is needed from here on, so a broadcast pixel is passed to the worker.
                blank = np.broadcast_to(np.zeros(1, dtype=np.uint8), one.photo.shape)
                tasks[view] = Task(replace(one, photo=blank), seen, fresh, self._other(index), index)
        except DeformscopeError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            return replace(record, status="detector failed", note=f"{type(error).__name__}: {reason}"), {}, None
        if not any(task.field.maps for task in tasks.values()):
            return replace(record, status="offsets not finite", note=", ".join(record.broken)), {}, None
        return record, tasks, analysis

    def _look(self, detector: nn.Module, scene: Scene, fresh: bool = False) -> Seen:
        return look(detector, scene.photo, self.layers, together=self.composed, fresh=fresh)

    def _redrawn(self, scene: Scene) -> Maps:
        """The maps of those layers of the copy whose offsets are made by fresh convolutions."""
        if self.fresh is None:
            return {}
        maps = self._look(self.fresh, scene).maps
        return {key: one for key, one in maps.items() if key.partition(":")[0] not in self.others}

    def _other(self, index: int) -> Maps:
        """The maps of the photo before this one (of the first, after), or of the nearest that has any."""
        for distance in range(1, NEIGHBOURS):
            other = index - distance if index >= distance else distance
            if other == index or other >= len(self.photos.images):
                continue
            if other not in self.seen:
                scene = self.photos.scene_or_reason(other)
                try:
                    seen = None if isinstance(scene, str) else self._look(self.detector, scene)
                    self.seen[other] = None if seen is None else replace(seen, analysis=None)
                except (RuntimeError, ValueError, IndexError):
                    self.seen[other] = None
            seen = self.seen[other]
            if seen is not None and seen.maps:
                return seen.maps
        return {}

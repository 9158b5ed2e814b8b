"""The forward passes of a run, and what is measured of each: a detector on photos and their crops, and the nulls.

Nulls are maps without information on the photo, or only on its centre or on the detected boxes.

Freshly drawn offset convolutions react to what a photo shows, and so the copy is run. Freshly initialised attention
looks the same way whatever it sees, and is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray as Array
from torch import Tensor, nn

from ..analysis import Analysis
from ..errors import DeformscopeError, NoDeformableCall
from ..fields import attention_start
from ..fields.cell_maps import CellMaps, finite, sample_grid
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..fields.moments import encoder_fields, with_encoders
from ..fields.stack import DEEPEST, composed, upstream
from ..fields.viewpoint import divergence
from ..recording.capture import capture
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
    middle = centre(size)
    found = measure([middle, zero(size)], marks, [central_segment(middle, marks), None])
    found += measure([filled(size, boxes, scores)], marks, [filled_segments(marks, boxes, scores)])
    return dict(zip(("centre", "zero", "filled"), found, strict=True))


def _sources(task: Task) -> dict[tuple[str, str], CellMaps]:
    """The offsets and the nulls that depend on a layer, by layer and source."""
    sources = {}
    for number, (layer, maps) in enumerate(task.field.maps.items()):
        sources[layer, "field"] = maps
        if layer in task.fresh:
            sources[layer, "fresh"] = as_strong(task.fresh[layer], maps)
        if layer in task.other:
            sources[layer, "shuffled"] = shuffled(maps, task.other[layer])
        random = np.random.default_rng([task.seed, number])
        sources[layer, "noise"] = noise(maps, random, task.field.per_cell[layer])
    return sources


def _alike(sources: dict[tuple[str, str], CellMaps]) -> list[dict[tuple[str, str], CellMaps]]:
    """Groups of sources whose cells lie in the same places, to be measured together."""
    groups: dict[Any, dict[tuple[str, str], CellMaps]] = {}
    for key, maps in sources.items():
        groups.setdefault((maps.div.shape, maps.origin, maps.step), {})[key] = maps
    return list(groups.values())


def shuffled(maps: CellMaps, other: CellMaps) -> CellMaps:
    """The maps of another image, stretched to the cells of this one."""
    y, x = (np.linspace(0, there - 1, here) for there, here in zip(other.div.shape, maps.div.shape, strict=True))
    down, across, div, height, width = sample_grid(
        np.stack([other.d_f[..., 0], other.d_f[..., 1], other.div, other.height, other.width]), y, x
    )
    return CellMaps(np.stack([down, across], axis=-1), div, height, width, maps.origin, maps.step, maps.regular)


def noise(maps: CellMaps, random: np.random.Generator, per_cell: tuple[float, float]) -> CellMaps:
    """Noise with the power spectra, cross spectra and means of the maps: each wave gets one random phase.

    ``per_cell`` are the photo px (y, x) of an input cell, for the divergence. (Prichard and Theiler, Phys. Rev. Lett.
    73, 951, 1994, in two dimensions.)
    """
    h, w = maps.div.shape
    phases = np.angle(np.fft.fft2(random.standard_normal((h, w))))
    # The mean and the waves that are their own mirror images are real, and keep their phase.
    phases[0, 0] = 0.0
    stack = np.stack([maps.d_f[..., 0], maps.d_f[..., 1], maps.height, maps.width])
    waved = np.fft.ifft2(np.fft.fft2(stack) * np.exp(1j * phases)).real
    d_f = np.stack([waved[0], waved[1]], axis=-1)
    stride = tuple(step / cell for step, cell in zip(maps.step, per_cell, strict=True))
    cells = torch.from_numpy(d_f / np.array(per_cell))
    div = divergence(cells, (round(stride[0]), round(stride[1]))).numpy()
    return CellMaps(d_f, div, waved[2], waved[3], maps.origin, maps.step, maps.regular)


def plain_grid(size: tuple[int, int], across: int = 64) -> tuple[CellMaps, Float[Array, "h w 2"]]:
    """Empty maps over a photo of ``size`` (h, w) px, and the centres of their cells."""
    step = max(size) / across
    shape = tuple(max(2, round(length / step)) for length in size)
    steps = (size[0] / shape[0], size[1] / shape[1])
    blank = np.zeros(shape)
    maps = CellMaps(np.zeros((*shape, 2)), blank, blank, blank, (steps[0] / 2, steps[1] / 2), steps)
    return maps, maps.centres()


def zero(size: tuple[int, int]) -> CellMaps:
    """No offsets: every metric is at chance."""
    return plain_grid(size)[0]


def centre(size: tuple[int, int]) -> CellMaps:
    """Every cell points to the photo's centre; the score falls with the distance, in units of the photo's sides.

    Its zero, where a field's divergence would change sign, leaves half of the photo inside, as a field without mean
    does. Circles are all alike.
    """
    maps, places = plain_grid(size)
    middle = np.array(size) / 2
    relative = ((places - middle) / np.array(size)) ** 2
    distance = relative.sum(axis=-1)
    same = np.full(maps.div.shape, np.sqrt(size[0] * size[1]) / 4)
    return CellMaps(middle - places, distance - 0.5 / np.pi, same, same, maps.origin, maps.step)


LEAST_SCORE = 0.3
"""Smallest score of a box whose places get a positive score."""


def filled(size: tuple[int, int], boxes: Float[Array, "d 4"], scores: Float[Array, " d"]) -> CellMaps:
    """Each cell has the score, centre, height and width of the best detected box around it."""
    maps, places = plain_grid(size, 96)
    shape = maps.div.shape
    best, d_f = np.zeros(shape), np.zeros((*shape, 2))
    height, width = np.zeros(shape), np.zeros(shape)
    for (x0, y0, x1, y1), score in sorted(zip(boxes.tolist(), scores.tolist(), strict=True), key=lambda pair: pair[1]):
        rows, columns = np.searchsorted(places[:, 0, 0], (y0, y1)), np.searchsorted(places[0, :, 1], (x0, x1))
        inside = slice(*rows), slice(*columns)
        best[inside], height[inside], width[inside] = score, y1 - y0, x1 - x0
        d_f[inside] = np.array([(y0 + y1) / 2, (x0 + x1) / 2]) - places[inside]
    return CellMaps(d_f, LEAST_SCORE - best, height, width, maps.origin, maps.step)


def fresh_copy(model: nn.Module, convolutions: tuple[str, ...], seed: int = 0) -> nn.Module:
    """A copy of ``model`` with new random weights and biases in the named convolutions, as by ``nn.Conv2d``."""
    copied = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    for name in convolutions:
        convolution = copied.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        bound = convolution.weight[0].numel() ** -0.5  # Kaiming's uniform with a = √5, PyTorch's default
        for parameter in (convolution.weight, convolution.bias):
            if parameter is not None:
                parameter.data.copy_((torch.rand(parameter.shape, generator=random) * 2 - 1) * bound)
    return copied


def as_strong(maps: CellMaps, like: CellMaps) -> CellMaps:
    """Maps scaled so that the rms of d_f equals that of ``like``; only the pattern differs."""
    length = float(np.sqrt((maps.d_f**2).mean()))
    if length <= 0:
        return maps
    factor = float(np.sqrt((like.d_f**2).mean())) / length
    return replace(
        maps, d_f=maps.d_f * factor, div=maps.div * factor, height=maps.height * factor, width=maps.width * factor
    )


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
        self.fresh = fresh_copy(detector, made.convolutions, seed) if made.convolutions else None
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

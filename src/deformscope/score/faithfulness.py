"""Are attributions true, over a folder of photos: areas under deletion and insertion curves, against other orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..attribution.explain import explain
from ..attribution.explanation import Explanation
from ..attribution.faithfulness import KINDS, ORDERS, faithfulness
from ..detectors.detector import Detector
from ..errors import DeformscopeError
from ..metrics.bootstrap import Estimate, draws, mean
from .scenes import open_folder

if TYPE_CHECKING:
    from rich.table import Table

DRAWS = 2000
MOST_LAYERS = 3
QUANTITIES = {"score": "probability", "iou": "box IoU"}
"""What a curve is of: the class's probability, and the IoU of the box with what it was."""
SWITCHED = {"deletion": "off", "insertion": "on"}


@dataclass(frozen=True)
class LayerAreas:
    """Areas under the curves of one layer of one explained detection."""

    layer: str
    depth: int
    """0: the last layer on which the detection depends; 1: the one below it; and so on."""
    candidates: int
    """Number of sampling points that were switched."""
    areas: Mapping[str, Mapping[str, Mapping[str, float]]]
    """By quantity (``score``, ``iou``), kind (``deletion``, ``insertion``) and order."""


@dataclass(frozen=True)
class PhotoAreas:
    """The best detection of a photo, and the areas in each of its layers."""

    photo: str
    label: str
    score: float
    layers: tuple[LayerAreas, ...]


@dataclass(frozen=True)
class Area:
    """Mean area under one curve over the photos, and how far attribution's lies from it."""

    depth: int
    layers: tuple[str, ...]
    """The names of the layers at this depth, as the photos' detections came from several levels."""
    kind: str
    """``deletion`` or ``insertion``."""
    of: str
    """``score`` or ``iou``."""
    order: str
    photos: int
    area: Estimate
    gain: Estimate
    """By how much attribution's area is better: smaller in deletion, larger in insertion. Paired over photos."""


def measure(
    detector: Detector,
    data: Path,
    *,
    max_photos: int | None = None,
    split: str = "val",
    min_score: float = 0.3,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[PhotoAreas]:
    """A record per photo: its best detection that scores at least ``min_score``, and the areas in each of its layers.

    Photos without such a detection are passed over; ``max_photos`` counts the others, in the folder's fixed random
    order. Raises DeformscopeError where no photo has one, and for a detector whose detections cannot be explained or
    come from no deformable convolution.
    """
    detector.check_explainable()
    photos = open_folder(data, split)
    most = len(photos.images) if max_photos is None else max_photos
    records: list[PhotoAreas] = []
    for index, image in enumerate(photos.images):
        if len(records) == most:
            break
        array = photos.scene(index).photo
        found = detector(array, min_score=min_score, max_detections=1)[0]
        progress(len(records), most)
        if not len(found["boxes"]):
            continue
        explained = explain(detector, array, min_score=min_score)
        if explained.attention and not explained.reached:
            raise DeformscopeError(
                f"{detector.name}: its detections come from deformable attention; expected deformable convolutions, "
                "whose sampling points are switched off and on here"
            )
        curves = [faithfulness(detector, explained, name, seed=seed + index) for name in _measured(explained)]
        layers = tuple(LayerAreas(one.layer, n, one.candidates, one.areas()) for n, one in enumerate(curves))
        score = float(explained.detection["scores"][0])
        records.append(PhotoAreas(image.file_name, explained.label, score, layers))
    if not records:
        raise DeformscopeError(f"min_score={min_score:g}: no photo has a detection that scores so high; lower it")
    return records


def _measured(explained: Explanation) -> list[str]:
    """The layers that are measured, from the output downwards: all, or of many the last of each reduction."""
    reached = explained.reached
    if len(reached) > MOST_LAYERS:
        last = {layer.field.reduction: name for name, layer in reached.items()}
        reached = {name: layer for name, layer in reached.items() if name in last.values()}
    return list(reached)[::-1]


def summarise(records: Sequence[PhotoAreas]) -> list[Area]:
    """Means over photos with 95 % intervals by resampling photos, the same samples for all."""
    weights = draws(len(records), DRAWS)
    areas = []
    for depth in range(max(len(record.layers) for record in records)):
        there = [record.layers[depth] if depth < len(record.layers) else None for record in records]
        names = tuple(sorted({one.layer for one in there if one is not None}))
        for of in QUANTITIES:
            for kind in KINDS:
                values = {
                    order: np.array([np.nan if one is None else one.areas[of][kind][order] for one in there])
                    for order in ORDERS
                }
                for order in ORDERS:
                    sign = 1 if kind == "deletion" else -1
                    gain = Estimate.of(mean(sign * (values[order] - values["attribution"]), weights))
                    count = int(np.isfinite(values[order]).sum())
                    areas.append(
                        Area(depth, names, kind, of, order, count, Estimate.of(mean(values[order], weights)), gain)
                    )
    return areas


def as_tables(areas: Sequence[Area]) -> list[Table]:
    """A table per layer; a row for each kind, quantity and order: its area, and what attribution gains over it."""
    from rich.table import Table

    tables: dict[int, Table] = {}
    for area in areas:
        if area.depth not in tables:
            title = f"{_where(area)}, {area.photos} photos: areas under deletion and insertion curves"
            table = tables[area.depth] = Table(title=title, title_justify="left")
            for heading in ("points", "curve of", "order", "area", "attribution's gain [95 %]"):
                table.add_column(heading, justify="left" if heading in ("points", "curve of", "order") else "right")
        first = area.order == ORDERS[0]
        words = (SWITCHED[area.kind], QUANTITIES[area.of]) if first else ("", "")
        gain = "" if first else area.gain.text()
        tables[area.depth].add_row(*words, area.order, area.area.text(interval=False), gain)
    return list(tables.values())


def as_text(areas: Sequence[Area]) -> str:
    """A verdict per layer and quantity: faithful where attribution beats every other order, switched off and on."""
    lines = ["gain: by how much attribution's area is smaller (off) or larger (on), paired over photos"]
    for depth in sorted({area.depth for area in areas}):
        for of, words in QUANTITIES.items():
            own = [one for one in areas if (one.depth, one.of) == (depth, of) and one.order != "attribution"]
            lost = [f"{one.order} (switched {SWITCHED[one.kind]})" for one in own if not one.gain.low > 0]
            verdict = "does not beat " + ", ".join(lost) if lost else "faithful, beats every other order"
            lines.append(f"{_where(own[0])}, {words}: {verdict}")
    return "\n".join(lines)


def _where(area: Area) -> str:
    if len(area.layers) == 1:
        return area.layers[0]
    return "last layers" if area.depth == 0 else f"layers {area.depth} below the last"

"""Are attributions true, over a folder of photos: areas under deletion and insertion curves, against other orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..detectors.detector import Detector
from ..errors import DeformscopeError
from ..explain.explain import explain
from ..explain.explanation import Explanation
from ..explain.faithfulness import KINDS, ORDERS, faithfulness
from ..metrics.bootstrap import draws, interval, mean
from .measures.annotations import open_folder

if TYPE_CHECKING:
    from rich.table import Table

DRAWS = 2000
MOST_LAYERS = 3


@dataclass(frozen=True)
class Area:
    """Mean area under one curve over the photos, and how far attribution's lies from it."""

    depth: int
    """0: the last layer on which a detection depends; 1: the one below it; and so on."""
    layers: tuple[str, ...]
    """Their names, as the photos' detections came from several levels."""
    kind: str
    """``deletion`` or ``insertion``."""
    of: str
    """``score``, the class's probability, or ``iou``, the box's IoU with what it was."""
    order: str
    photos: int
    value: float
    low: float
    high: float
    gain: float
    """By how much attribution's area is better: smaller in deletion, larger in insertion. Paired over photos."""
    gain_low: float
    gain_high: float


def measure(
    detector: Detector,
    data: Path,
    *,
    max_photos: int | None = None,
    split: str = "val",
    min_score: float = 0.3,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """A record a photo: its best detection that scores at least ``min_score``, and the areas in each of its layers.

    Photos without such a detection are passed over; ``max_photos`` counts the others, in the folder's fixed random
    order. Raises DeformscopeError where no photo has one, and for a detector whose detections cannot be explained or
    come from no deformable convolution.
    """
    detector.check_explainable()
    photos = open_folder(data, split)
    most = len(photos.images) if max_photos is None else max_photos
    records: list[dict[str, Any]] = []
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
        layers = [
            {"layer": curves.layer, "depth": depth, "candidates": curves.candidates, "areas": curves.areas()}
            for depth, curves in enumerate(
                faithfulness(detector, explained, name, seed=seed + index) for name in _measured(explained)
            )
        ]
        records.append(
            {
                "photo": image.file_name,
                "class": explained.label,
                "score": float(explained.detection["scores"][0]),
                "layers": layers,
            }
        )
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


def summarise(records: Sequence[Mapping[str, Any]]) -> list[Area]:
    """Means over photos with 95 % intervals by resampling photos, the same samples for all."""
    weights = draws(len(records), DRAWS)
    areas = []
    for depth in range(max(len(record["layers"]) for record in records)):
        there = [record["layers"][depth] if depth < len(record["layers"]) else None for record in records]
        names = tuple(sorted({one["layer"] for one in there if one is not None}))
        for of in ("score", "iou"):
            for kind in KINDS:
                values = {
                    order: np.array([np.nan if one is None else one["areas"][of][kind][order] for one in there])
                    for order in ORDERS
                }
                for order in ORDERS:
                    sign = 1 if kind == "deletion" else -1
                    drawn = mean(values[order], weights)
                    gained = mean(sign * (values[order] - values["attribution"]), weights)
                    count = int(np.isfinite(values[order]).sum())
                    numbers = (float(drawn[0]), *interval(drawn[1:]), float(gained[0]), *interval(gained[1:]))
                    areas.append(Area(depth, names, kind, of, order, count, *numbers))
    return areas


def as_table(areas: Sequence[Area]) -> Table:
    """A row for each layer, kind and quantity: the area of each order, and what attribution gains over the others."""
    from rich.table import Table

    table = Table(title="Areas under deletion and insertion curves", title_justify="left")
    for heading in (
        "layer",
        "switched",
        "curve of",
        "photos",
        *ORDERS,
        "gain over nearest [95 %]",
        "over random [95 %]",
    ):
        table.add_column(heading, justify="left" if heading in ("layer", "switched", "curve of") else "right")
    rows: dict[tuple[int, str, str], dict[str, Area]] = {}
    for area in areas:
        rows.setdefault((area.depth, area.kind, area.of), {})[area.order] = area
    for (depth, kind, of), orders in rows.items():
        first = orders["attribution"]
        where = first.layers[0] if len(first.layers) == 1 else ("last" if depth == 0 else f"{depth} below")
        gains = [
            f"{one.gain:+.3f} [{one.gain_low:+.3f}, {one.gain_high:+.3f}]"
            for one in (orders["nearest"], orders["random"])
        ]
        switched = "off" if kind == "deletion" else "on"
        what = "probability" if of == "score" else "box IoU"
        cells = [f"{orders[order].value:.3f}" for order in ORDERS]
        table.add_row(where, switched, what, str(first.photos), *cells, *gains)
    table.caption = "gain: by how much attribution's area is smaller (off) or larger (on), paired over photos"
    table.caption_justify = "left"
    return table

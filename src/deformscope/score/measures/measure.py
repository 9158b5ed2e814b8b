"""Metrics of a photo for each source (offsets or null), as plain numbers for a line of JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torchvision.ops import box_iou

from ...fields.cell_maps import CellMaps, ends, sample_each, sample_grid
from ...fields.segments import places_of, regions_of
from ...metrics import matching
from . import condensation, segmentation
from .marks import Marks

Array = np.ndarray
Measured = dict[str, Any]
"""``image``: metrics of the photo; ``things``: lists with a number per object; ``iou``: a number per threshold;
``segments``: scores and, as bit masks over the IoU thresholds, what they matched."""

IMAGE = (
    "auroc",
    "auroc_ring",
    "auroc_box",
    "ap",
    "energy",
    "energy_ratio",
    "corloc",
    "corloc_segment",
    "pointing",
    "pointing_ring",
    "pointing_box",
)
THINGS = (
    "sink_distance",
    "towards",
    "cosine",
    "ends_inside",
    "end_distance",
    "moved_distance",
    "r_centre",
    "r_sink",
    "r_largest",
    "height",
    "width",
)


@dataclass(frozen=True)
class Overlaps:
    """The segments of a source, as needed for metrics."""

    iou: Float[Array, "s m"]
    """With the objects that count, then with the ignored ones (:func:`matching.mask_iou`)."""
    scores: Float[Array, " s"]
    first: Bool[Array, " p"]
    """Places of the first segment."""


def measure(
    maps: Sequence[CellMaps],
    marks: Marks,
    segments: Sequence[Overlaps | None],
    arrived: Float[Array, "s rows columns 2"] | None = None,
) -> list[Measured]:
    """The metrics of each of the s ``maps``, whose cells lie in the same places.

    ``segments`` is None where a source has none. ``arrived`` is what :func:`deformscope.fields.segments.arrivals` says
    of the maps, where it is known already. Units: distances in sqrt(box area), radii and extents in photo px, all else
    shares, ratios and areas under curves.
    """
    score = -_on_lattice(maps, marks).reshape(len(maps), -1)
    things = _things(maps, score, marks, arrived)
    nothing = np.zeros(len(marks.points), dtype=bool)
    corloc = _corloc(marks, score > 0)
    corloc_segment = _corloc(marks, np.array([nothing if found is None else found.first for found in segments]))
    measured = []
    for source, found in enumerate(segments):
        image, iou = _image(score[source], marks)
        image |= {"corloc": corloc[source], "corloc_segment": corloc_segment[source]}
        measured.append(
            {
                "image": {name: _short(image[name]) for name in IMAGE},
                "things": {name: [_short(value) for value in things[name][source]] for name in THINGS},
                "iou": [_short(value) for value in iou],
                "segments": _matched(marks, found),
            }
        )
    return measured


def _on_lattice(maps: Sequence[CellMaps], marks: Marks) -> Float[Array, "s rows columns"]:
    """The divergence of each of ``maps`` at the places of ``marks``."""
    rows, columns = (
        (line - origin) / step
        for line, origin, step in zip((marks.rows, marks.columns), maps[0].origin, maps[0].step, strict=True)
    )
    return sample_grid(np.array([one.div for one in maps]), rows, columns)


def _image(score: Float[Array, " p"], marks: Marks) -> tuple[dict[str, float], Float[Array, " t"]]:
    """The metrics of a photo without CorLoc, and the IoU at each threshold."""
    counted = marks.counted
    if not counted.places.size:  # an ignored object covers the photo, and the others lie between the places
        return dict.fromkeys(IMAGE, float("nan")), np.full(len(segmentation.LEVELS), np.nan)
    seen, inside, boxed, ring = score[counted.places], counted.inside, counted.in_box, counted.ring
    ranked = segmentation.Ranked.of(seen)
    pointing = condensation.pointing(seen, inside)
    share, ratio = segmentation.energy(seen, inside)
    return {
        "auroc": segmentation.auroc(ranked, inside),
        "auroc_ring": segmentation.ring_auroc(ranked, inside, ring),
        "auroc_box": segmentation.auroc(ranked, boxed),
        "ap": segmentation.average_precision(ranked, inside),
        "energy": share,
        "energy_ratio": ratio,
        "pointing": pointing,
        "pointing_ring": pointing - condensation.ring_chance(seen, inside, ring),
        "pointing_box": condensation.pointing(seen, boxed),
    }, segmentation.threshold_ious(ranked, inside)


def _things(
    maps: Sequence[CellMaps],
    score: Float[Array, "s p"],
    marks: Marks,
    arrived: Float[Array, "s rows columns 2"] | None,
) -> dict[str, Float[Array, "s m"]]:
    """The metrics of each object, by source."""
    found = {name: np.full((len(maps), len(marks.things)), np.nan) for name in THINGS}
    d_f, radius = np.array([one.d_f for one in maps]), np.array([one.radius for one in maps])
    places = maps[0].centres()
    cells = [condensation.cells_on(maps[0], thing, places) for thing in marks.things]
    at_end = _ends(maps, np.any(cells, axis=0), arrived)
    rows, columns = np.concatenate([np.nonzero(own) for own in cells], axis=1)
    counts = [int(own.sum()) for own in cells]
    movement = condensation.movement(
        d_f[:, rows, columns], places[rows, columns], at_end[:, rows, columns], marks.things, counts
    )
    found |= asdict(movement)
    found["r_largest"] = np.maximum.reduceat(radius[:, rows, columns], np.cumsum([0, *counts[:-1]]), axis=1)
    centres = condensation.centres(marks.things)
    source, of_thing, place = condensation.sinks(score, marks.places[: len(marks.things)])
    sinks = marks.points[place]
    distance = np.linalg.norm(sinks - centres[of_thing], axis=-1) / condensation.scales(marks.things)[of_thing]
    r_sink = sample_each(radius, source, maps[0].to_cells(sinks))
    every, at_centre = np.arange(len(maps))[:, None], maps[0].to_cells(centres)[None].repeat(len(maps), axis=0)
    every = every.repeat(len(centres), axis=1)
    for name, extent in (
        ("r_centre", radius),
        ("height", np.array([one.height for one in maps])),
        ("width", np.array([one.width for one in maps])),
    ):
        found[name] = sample_each(extent, every, at_centre)
    row = source * len(centres) + of_thing
    count = np.bincount(row, minlength=found["r_sink"].size)
    for name, values in (("sink_distance", distance), ("r_sink", r_sink)):
        mean = np.bincount(row, values, count.size) / np.maximum(count, 1)
        found[name] = np.where(count > 0, mean, np.nan).reshape(found[name].shape)
    return found


def _ends(
    maps: Sequence[CellMaps], wanted: Bool[Array, "h w"], arrived: Float[Array, "s rows columns 2"] | None
) -> Float[Array, "s h w 2"]:
    """Where the ``wanted`` cells end when they follow d_f, (y, x) photo px; NaN for others that are not known."""
    if arrived is not None and arrived.shape[1:3] == wanted.shape:  # one start a cell: its centre
        return maps[0].to_photo(arrived)
    found = np.full((len(maps), *wanted.shape, 2), np.nan)
    found[:, wanted] = maps[0].to_photo(ends(maps, np.argwhere(wanted).astype(float)))
    return found


def found_segments(
    maps: Sequence[CellMaps], marks: Marks, arrived: Float[Array, "s rows columns 2"] | None = None
) -> list[Overlaps]:
    """The segments that are grown from the offsets of each source."""
    found = regions_of(maps, arrived)
    places = places_of(maps[0].to_cells(marks.points), found[0].labels.shape, found[0].per_cell)
    return [_labelled(regions.labels[places], regions.scores, marks) for regions in found]


def central_segment(maps: CellMaps, marks: Marks) -> Overlaps:
    """The half of the photo around its centre as one segment."""
    return _labelled((_on_lattice([maps], marks).ravel() < 0).astype(int), np.ones(1), marks)


def _labelled(labels: Int[Array, " p"], scores: Float[Array, " s"], marks: Marks) -> Overlaps:
    """Segments given by their numbers, from 1, on the lattice."""
    count = len(scores) + 1
    common = np.array([np.bincount(labels[on], minlength=count)[1:] for on in marks.places])
    common = common.reshape(len(marks.objects), len(scores))
    area = np.bincount(labels, minlength=count)[1:]
    iou = matching.iou_of_areas(common.T, area, marks.objects.sum(axis=1), marks.are_ignored)
    return Overlaps(iou, scores, labels == 1)


def filled_segments(marks: Marks, boxes: Float[Array, "d 4"], scores: Float[Array, " d"]) -> Overlaps:
    """Each detected box as a segment."""
    grid = marks.points.reshape(*marks.shape, 2)
    # A box is the product of some rows and some columns of the lattice.
    rows, columns = (
        ((line >= boxes[:, low, None]) & (line < boxes[:, low + 2, None])).astype(float)
        for line, low in ((grid[:, 0, 0], 1), (grid[0, :, 1], 0))
    )
    objects = marks.objects.reshape(-1, *marks.shape).astype(float)
    common = (np.tensordot(rows, objects, (1, 1)) * columns[:, None]).sum(axis=-1)
    area = rows.sum(axis=1) * columns.sum(axis=1)
    iou = matching.iou_of_areas(common, area, marks.objects.sum(axis=1), marks.are_ignored)
    first = np.outer(rows[0], columns[0]).ravel() > 0 if len(boxes) else np.zeros(len(marks.points), dtype=bool)
    return Overlaps(iou, scores, first)


def _corloc(marks: Marks, chosen: Bool[Array, "s p"]) -> list[float]:
    """CorLoc (Deselaers et al., ECCV 2010): 1 where the largest component's box has IoU ≥ 0.5 with an object's."""
    points = marks.points.reshape(*marks.shape, 2)
    boxes = [segmentation.largest_box(one.reshape(marks.shape), points) for one in chosen]
    objects = torch.tensor([thing.box for thing in marks.things], dtype=torch.float64)
    iou = box_iou(torch.tensor([box or (0.0, 0.0, 0.0, 0.0) for box in boxes], dtype=torch.float64), objects)
    return (iou >= 0.5).any(dim=1).double().tolist()


def _matched(marks: Marks, segments: Overlaps | None) -> dict[str, Any]:
    if segments is None:
        return {"scores": [], "hit": [], "skipped": []}
    result = matching.match(segments.iou, segments.scores, marks.are_ignored)
    bits = 2 ** np.arange(len(matching.IOUS))
    return {
        "scores": [_short(score) for score in result.scores],
        "hit": (bits @ result.hit).tolist(),
        "skipped": (bits @ result.skipped).tolist(),
    }


def _short(value: float) -> float:
    """Round to five digits, which keeps records small."""
    return float(f"{value:.5g}")

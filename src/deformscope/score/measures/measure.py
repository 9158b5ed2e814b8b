"""Every figure of one photo: of each field and of what stands beside it, as plain numbers that a line of JSON holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from ...fields.cell_maps import CellMaps
from ...fields.segments import regions
from ...metrics import matching
from . import condensation, segmentation
from .marks import Marks

Array = np.ndarray
Measured = dict[str, Any]
"""``image``: figures of the photo; ``things``: lists with one figure an object; ``iou``: a figure a threshold;
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


def measure(maps: CellMaps, marks: Marks, segments: tuple[Bool[Array, "s p"], Float[Array, " s"]] | None) -> Measured:
    """The figures of one map of cells. ``segments`` are places and scores of regions, None: there are none.

    Units: distances in sqrt(box area), radii and extents in photo px, all else shares, ratios and areas under curves.
    """
    score = -maps.at(maps.div, marks.points)
    valid = marks.valid
    seen, inside, boxed, ring = (
        score[valid],
        marks.inside[valid],
        np.asarray(marks.boxed.any(axis=0))[valid],
        marks.ring[valid],
    )
    pointing = condensation.pointing(seen, inside)
    share, ratio = segmentation.energy(seen, inside)
    iou = segmentation.overlaps(seen, inside)
    image = {
        "auroc": segmentation.auroc(seen, inside),
        "auroc_ring": segmentation.ring_auroc(seen, inside, ring),
        "auroc_box": segmentation.auroc(seen, boxed),
        "ap": segmentation.average_precision(seen, inside),
        "energy": share,
        "energy_ratio": ratio,
        "corloc": _corloc(marks, score > 0),
        "corloc_segment": _corloc(marks, _first(segments, len(score))),
        "pointing": pointing,
        "pointing_ring": pointing - condensation.ring_chance(seen, inside, ring),
        "pointing_box": condensation.pointing(seen, boxed),
    }
    ends = maps.ends()
    things: dict[str, list[float]] = {name: [] for name in THINGS}
    for thing, on in zip(marks.things, marks.on, strict=True):
        sinks = condensation.sinks(score, marks.points, on)
        figures = asdict(condensation.flow(maps, ends, thing))
        figures["sink_distance"] = condensation.sink_distance(sinks, thing)
        centre = np.array(thing.centre)
        figures["r_centre"] = float(maps.at(maps.radius, centre[None])[0])
        figures["r_sink"] = float(maps.at(maps.radius, sinks).mean()) if len(sinks) else float("nan")
        figures["r_largest"] = float(maps.radius[condensation.cells_on(maps, thing)].max())
        figures["height"] = float(maps.at(maps.height, centre[None])[0])
        figures["width"] = float(maps.at(maps.width, centre[None])[0])
        for name in THINGS:
            things[name].append(_short(figures[name]))
    return {
        "image": {name: _short(image[name]) for name in IMAGE},
        "things": things,
        "iou": [_short(value) for value in iou],
        "segments": _matched(marks, segments),
    }


def found_segments(maps: CellMaps, marks: Marks) -> tuple[Bool[Array, "s p"], Float[Array, " s"]]:
    """The regions that the offsets give, as places of the lattice."""
    found = regions(maps)
    labels = found.at(maps.to_cells(marks.points))
    return labels == np.arange(1, len(found.scores) + 1)[:, None], found.scores


def filled_segments(
    marks: Marks, boxes: Float[Array, "d 4"], scores: Float[Array, " d"]
) -> tuple[Bool[Array, "d p"], Float[Array, " d"]]:
    """Each detected box as a region."""
    y, x = marks.points.T
    inside = [(y >= y0) & (y < y1) & (x >= x0) & (x < x1) for x0, y0, x1, y1 in boxes]
    return np.array(inside, dtype=bool).reshape(len(boxes), len(y)), scores


def central_segment(maps: CellMaps, marks: Marks) -> tuple[Bool[Array, "1 p"], Float[Array, 1]]:
    """The half of the photo around its centre as one region."""
    return (maps.at(maps.div, marks.points) < 0)[None], np.ones(1)


def _first(segments: tuple[Array, Array] | None, places: int) -> Array:
    return segments[0][0] if segments is not None and len(segments[0]) else np.zeros(places, dtype=bool)


def _corloc(marks: Marks, chosen: Bool[Array, " p"]) -> float:
    """CorLoc (Deselaers et al., ECCV 2010): 1 where the largest component's box has IoU ≥ 0.5 with an object's."""
    box = segmentation.largest_box(chosen.reshape(marks.shape), marks.points.reshape(*marks.shape, 2))
    if box is None:
        return 0.0
    return float(segmentation.box_iou(np.array([box]), np.array([t.box for t in marks.things])).max() >= 0.5)


def _matched(marks: Marks, segments: tuple[Array, Array] | None) -> dict[str, Any]:
    if segments is None:
        return {"scores": [], "hit": [], "skipped": []}
    objects = np.concatenate([marks.on, marks.ignored])
    ignored = np.arange(len(objects)) >= len(marks.on)
    result = matching.match(matching.mask_iou(segments[0], objects, ignored), segments[1], ignored)
    bits = 2 ** np.arange(len(matching.IOUS))
    return {
        "scores": [_short(score) for score in result.scores],
        "hit": (bits @ result.hit).tolist(),
        "skipped": (bits @ result.skipped).tolist(),
    }


def _short(value: float) -> float:
    """Five digits are enough, and keep a record of thirteen layers small."""
    return float(f"{value:.5g}")

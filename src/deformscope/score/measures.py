"""What is measured of a photo for each source (the offsets or a null): where features go, and which places are objects.

Condensation: do features move to the centres of objects? Segmentation: does a score, high where the divergence is low,
separate objects from the rest?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray as Array
from scipy import ndimage
from torchvision.ops import box_iou

from ..fields.cell_maps import CellMaps, sample_each, sample_grid
from ..fields.segments import places_of, regions_of
from ..metrics import matching
from .records import IMAGE, LEVELS, THINGS, Matched, Measured, bits, short
from .scenes import Marks, Thing


def pointing(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> float:
    """Pointing game: 1 if the highest score lies on an object, else 0; for equally high scores the share on objects."""
    return float(inside[score >= score.max()].mean())


def ring_chance(score: Float[Array, " p"], inside: Bool[Array, " p"], ring: Int[Array, " p"]) -> float:
    """Expected pointing game of a random place in the ring of the highest score."""
    share = np.bincount(ring, inside) / np.maximum(np.bincount(ring), 1)
    return float(share[ring[score >= score.max()]].mean())


def sinks(
    score: Float[Array, "s p"], on: Sequence[Int[Array, " _"]]
) -> tuple[Int[Array, " k"], Int[Array, " k"], Int[Array, " k"]]:
    """Source, object and place of the highest score of each source on each object; several if they are equally high.

    ``on`` has the places on each object. Objects between the places of the lattice have none.
    """
    found = [np.zeros((3, 0), dtype=int)]
    for thing, places in enumerate(on):
        if places.size:
            there = score[:, places]
            source, top = np.nonzero(there >= there.max(axis=1, keepdims=True))
            found.append(np.stack([source, np.full(len(top), thing), places[top]]))
    source, thing_of, place = np.concatenate(found, axis=1)
    return source, thing_of, place


def centres(things: Sequence[Thing]) -> Float[Array, "m 2"]:
    """Centres of the boxes, (y, x) px."""
    return np.array([thing.centre for thing in things], dtype=float).reshape(-1, 2)


def scales(things: Sequence[Thing]) -> Float[Array, " m"]:
    """sqrt(box area), px."""
    return np.array([np.sqrt(thing.size[0] * thing.size[1]) for thing in things], dtype=float)


def movement(
    d_f: Float[Array, "s c 2"], places: Float[Array, "c 2"], things: Sequence[Thing], counts: Sequence[int]
) -> tuple[Float[Array, "s m"], Float[Array, "s m"]]:
    """How the cells of m ``things`` move by the d_f of each of s sources; the first ``counts[0]`` of the c cells, at
    ``places`` (y, x) photo px, are on the first object, and so on.

    The mean cosine between d_f and the direction to the object's centre, where zero d_f counts 0; and the mean distance
    from that centre after moving by d_f once, in units of sqrt(box area).
    """
    first = np.cumsum([0, *counts[:-1]])
    middle, unit = (np.repeat(values, counts, axis=0) for values in (centres(things), scales(things)))

    def mean(values: Float[Array, "s c"]) -> Float[Array, "s m"]:
        return np.add.reduceat(values, first, axis=1) / np.array(counts)

    direction = middle - places
    lengths = np.linalg.norm(direction, axis=-1) * np.linalg.norm(d_f, axis=-1)
    cosine = (direction * d_f).sum(axis=-1) / np.maximum(lengths, 1e-12)
    return mean(cosine), mean(np.linalg.norm(places + d_f - middle, axis=-1) / unit)


def cells_on(maps: CellMaps, thing: Thing, places: Float[Array, "h w 2"] | None = None) -> Bool[Array, "h w"]:
    """The cells (with centres ``places``) on an object, or the one nearest to its centre if there are none."""
    on = thing.covers(maps.centres() if places is None else places)
    if not on.any():
        nearest = np.round(maps.to_cells(np.array(thing.centre))).astype(int)
        on[tuple(np.clip(nearest, 0, np.array(on.shape) - 1))] = True
    return on


@dataclass(frozen=True)
class Ranked:
    """Places from the lowest score to the highest, sorted once for all metrics."""

    score: Float[Array, " p"]
    """Ascending."""
    order: Int[Array, " p"]
    """Indices of the places."""
    runs: Int[Array, " g"]
    """Start of each run of equal scores."""
    rank: Float[Array, " p"]
    """Rank of each place, from 1; equal scores share their mean rank."""

    @classmethod
    def of(cls, score: Float[Array, " p"]) -> Ranked:
        """Sort the places."""
        order = np.argsort(score)
        ordered = score[order]
        runs = np.flatnonzero(_begins(ordered))
        rank = np.empty(len(score))
        if len(runs) == len(score):
            rank[order] = np.arange(1.0, len(score) + 1)
        else:
            lengths = np.diff(runs, append=len(score))
            rank[order] = np.repeat(runs + (lengths + 1) / 2, lengths)
        return cls(ordered, order, runs, rank)


def _begins(ordered: Shaped[Array, " p"]) -> Bool[Array, " p"]:
    """Whether a run of equal values begins at each place."""
    begins = np.ones(len(ordered), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return begins


def _counts(inside: Bool[Array, " p"], runs: Int[Array, " g"]) -> tuple[Int[Array, " g"], Int[Array, " g"]]:
    """For each run, the number of places on objects and beside them."""
    if len(runs) == len(inside):
        positive = inside.astype(int)
        return positive, 1 - positive
    positive = np.add.reduceat(inside.astype(int), runs)
    return positive, np.diff(runs, append=len(inside)) - positive


def auroc(ranked: Ranked, inside: Bool[Array, " p"]) -> float:
    """Area under the ROC curve: the probability that a place on an object scores higher than one beside it; ties half.

    NaN if there is only one kind.
    """
    positive = int(inside.sum())
    pairs = positive * (len(inside) - positive)
    return float((ranked.rank[inside].sum() - positive * (positive + 1) / 2) / pairs) if pairs else float("nan")


def ring_auroc(ranked: Ranked, inside: Bool[Array, " p"], ring: Int[Array, " p"]) -> float:
    """AUROC within rings around the photo's centre, averaged with the number of pairs as weights."""
    # A stable sort by ring keeps the order of scores within a ring, and takes linear time for small integers.
    by_ring = np.argsort(ring.astype(np.int16, copy=False)[ranked.order], kind="stable")
    order = ranked.order[by_ring]
    begins = _begins(ring[order])
    starts, runs = np.flatnonzero(begins), np.flatnonzero(begins | _begins(ranked.score[by_ring]))
    positive, negative = _counts(inside[order], runs)
    first = np.searchsorted(runs, starts)  # run of each ring
    below = np.append(0, np.cumsum(negative))
    in_ring = np.diff(below[np.append(first, len(runs))])
    pairs = int((np.add.reduceat(positive, first) * in_ring).sum())
    lower = below[:-1] - np.repeat(below[first], np.diff(first, append=len(runs)))
    return float(positive @ (lower + negative / 2) / pairs) if pairs else float("nan")


def threshold_ious(ranked: Ranked, inside: Bool[Array, " p"]) -> Float[Array, " t"]:
    """IoU of {score > level · rms(score)} with the objects, for each of :data:`LEVELS`; F1 is 2 IoU / (1 + IoU)."""
    thresholds = np.array(LEVELS) * float(np.sqrt((ranked.score**2).mean()))
    below = np.searchsorted(ranked.score, thresholds, side="right")
    hits_below = np.append(0, np.cumsum(inside[ranked.order]))
    hits = hits_below[-1] - hits_below[below]
    return hits / np.maximum(len(inside) - below + hits_below[-1] - hits, 1)


def largest_box(
    chosen: Bool[Array, "rows columns"], points: Float[Array, "rows columns 2"]
) -> tuple[float, float, float, float] | None:
    """Box (xyxy px) of the largest connected component of the chosen places; None if there are none."""
    labels, count = ndimage.label(chosen)
    if not count:
        return None
    largest = int(np.bincount(labels.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(labels)[largest]
    top, left, bottom, right = rows.start, columns.start, rows.stop, columns.stop
    half = (points[-1, -1] - points[0, 0]) / np.maximum(np.array(chosen.shape) - 1, 1) / 2
    y0, x0 = points[top, left] - half
    y1, x1 = points[bottom - 1, right - 1] + half
    return float(x0), float(y0), float(x1), float(y1)


@dataclass(frozen=True)
class Overlaps:
    """The segments of a source, as needed for metrics."""

    iou: Float[Array, "s m"]
    """With the objects that count, then with the ignored ones (:func:`matching.mask_iou`)."""
    scores: Float[Array, " s"]
    first: Bool[Array, " p"]
    """Places of the first segment."""


def measure(maps: Sequence[CellMaps], marks: Marks, segments: Sequence[Overlaps | None]) -> list[Measured]:
    """The metrics of each of the s ``maps``, whose cells lie in the same places.

    ``segments`` is None where a source has none. Units: distances in sqrt(box area), radii in photo px, all else shares
    and areas under curves.
    """
    score = -_on_lattice(maps, marks).reshape(len(maps), -1)
    things = _things(maps, score, marks)
    nothing = np.zeros(len(marks.points), dtype=bool)
    corloc = _corloc(marks, np.array([nothing if found is None else found.first for found in segments]))
    measured = []
    for source, found in enumerate(segments):
        image, iou = _image(score[source], marks)
        image["corloc_segment"] = corloc[source]
        measured.append(
            Measured(
                image={name: short(image[name]) for name in IMAGE},
                things={name: tuple(short(value) for value in things[name][source]) for name in THINGS},
                iou=tuple(short(value) for value in iou),
                segments=_matched(marks, found),
            )
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
        return dict.fromkeys(IMAGE, float("nan")), np.full(len(LEVELS), np.nan)
    seen, inside, ring = score[counted.places], counted.inside, counted.ring
    ranked = Ranked.of(seen)
    points = pointing(seen, inside)
    return {
        "auroc": auroc(ranked, inside),
        "auroc_ring": ring_auroc(ranked, inside, ring),
        "pointing": points,
        "pointing_ring": points - ring_chance(seen, inside, ring),
    }, threshold_ious(ranked, inside)


def _things(maps: Sequence[CellMaps], score: Float[Array, "s p"], marks: Marks) -> dict[str, Float[Array, "s m"]]:
    """The metrics of each object, by source."""
    d_f, radius = np.array([one.d_f for one in maps]), np.array([one.radius for one in maps])
    places, middles = maps[0].centres(), centres(marks.things)
    cells = [cells_on(maps[0], thing, places) for thing in marks.things]
    rows, columns = np.concatenate([np.nonzero(own) for own in cells], axis=1)
    counts = [int(own.sum()) for own in cells]
    cosine, moved = movement(d_f[:, rows, columns], places[rows, columns], marks.things, counts)
    source, of_thing, place = sinks(score, marks.places[: len(marks.things)])
    distance = np.linalg.norm(marks.points[place] - middles[of_thing], axis=-1) / scales(marks.things)[of_thing]
    row = source * len(middles) + of_thing
    count = np.bincount(row, minlength=cosine.size)
    mean = np.bincount(row, distance, count.size) / np.maximum(count, 1)
    every = np.arange(len(maps))[:, None].repeat(len(middles), axis=1)
    return {
        "sink_distance": np.where(count > 0, mean, np.nan).reshape(cosine.shape),
        "cosine": cosine,
        "moved_distance": moved,
        "r_centre": sample_each(radius, every, maps[0].to_cells(middles)[None].repeat(len(maps), axis=0)),
        "r_largest": np.maximum.reduceat(radius[:, rows, columns], np.cumsum([0, *counts[:-1]]), axis=1),
    }


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
    boxes = [largest_box(one.reshape(marks.shape), points) for one in chosen]
    objects = torch.tensor([thing.box for thing in marks.things], dtype=torch.float64)
    iou = box_iou(torch.tensor([box or (0.0, 0.0, 0.0, 0.0) for box in boxes], dtype=torch.float64), objects)
    return (iou >= 0.5).any(dim=1).double().tolist()


def _matched(marks: Marks, segments: Overlaps | None) -> Matched:
    if segments is None:
        return Matched((), (), ())
    result = matching.match(segments.iou, segments.scores, marks.are_ignored)
    return Matched(tuple(short(score) for score in result.scores), *bits(result))

"""Metrics of segmentation: does a score, high where the divergence is low, separate objects from the rest?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import ndimage

Array = np.ndarray
LEVELS = tuple(np.round(np.arange(-1.0, 4.01, 0.25), 2).tolist())
"""Thresholds, in units of the rms of the divergence in the image; 0 is the published one."""
PUBLISHED = LEVELS.index(0.0)


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


def average_precision(ranked: Ranked, inside: Bool[Array, " p"]) -> float:
    """Σ (recall gained) · (precision there) over the distinct scores from the highest down; NaN without positives."""
    positive, _ = _counts(inside[ranked.order], ranked.runs)
    gain = np.flatnonzero(positive)[::-1]
    if not len(gain):
        return float("nan")
    hits = np.cumsum(positive[gain])
    chosen = len(inside) - ranked.runs[gain]
    return float((hits / chosen * (positive[gain] / hits[-1])).sum())


def threshold_ious(ranked: Ranked, inside: Bool[Array, " p"]) -> Float[Array, " t"]:
    """IoU of {score > level · rms(score)} with the objects, for each of :data:`LEVELS`; F1 is 2 IoU / (1 + IoU)."""
    thresholds = np.array(LEVELS) * float(np.sqrt((ranked.score**2).mean()))
    below = np.searchsorted(ranked.score, thresholds, side="right")
    hits_below = np.append(0, np.cumsum(inside[ranked.order]))
    hits = hits_below[-1] - hits_below[below]
    return hits / np.maximum(len(inside) - below + hits_below[-1] - hits, 1)


def energy(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> tuple[float, float]:
    """Energy-based pointing game (Wang et al., CVPR workshops 2020): the share of the positive score that lies on
    objects, and its ratio to the objects' share of the area. Without a positive score it is at chance."""
    area = float(inside.mean())
    positive = np.clip(score, 0, None)
    share = float(positive[inside].sum() / positive.sum()) if positive.sum() > 0 else area
    return share, share / area if area else float("nan")


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

"""Does the divergence segment objects? Pure functions of a score (higher where an object is expected) and the truth."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from skimage.measure import label, regionprops

Array = np.ndarray
LEVELS = tuple(np.round(np.arange(-1.0, 4.01, 0.25), 2).tolist())
"""Thresholds tried, in units of the image's own root mean square of the divergence; 0 is the published one."""
PUBLISHED = LEVELS.index(0.0)


def auroc(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> float:
    """Area under the ROC curve: the chance that a place on an object scores above one beside it, ties half.

    NaN where there is only one kind.
    """
    positive = int(inside.sum())
    negative = inside.size - positive
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[inside].sum() - positive * (positive + 1) / 2) / (positive * negative))


def ring_auroc(score: Float[Array, " p"], inside: Bool[Array, " p"], ring: Int[Array, " p"]) -> float:
    """AUROC among places equally far from the photo's centre: each ring's own, weighted by its pairs."""
    total, pairs = 0.0, 0
    for number in np.unique(ring):
        here = ring == number
        positive = int(inside[here].sum())
        weight = positive * (int(here.sum()) - positive)
        if weight:
            total += weight * auroc(score[here], inside[here])
            pairs += weight
    return total / pairs if pairs else float("nan")


def average_precision(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> float:
    """Σ (recall gained) · (precision there) over the distinct scores from the highest down; NaN without positives."""
    if not inside.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(inside[order])
    last = np.append(np.flatnonzero(np.diff(score[order])), score.size - 1)  # of each run of equal scores
    precision, gained = hits[last] / (last + 1), np.diff(hits[last], prepend=0) / hits[-1]
    return float((precision * gained).sum())


def overlaps(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> Float[Array, " t"]:
    """IoU of {score > level · rms(score)} with the objects, for each of :data:`LEVELS`; F1 is 2 IoU / (1 + IoU)."""
    strength = float(np.sqrt((score**2).mean()))
    order = np.sort(score)
    thresholds = np.array(LEVELS) * strength
    chosen = score.size - np.searchsorted(order, thresholds, side="right")
    hits = inside.sum() - np.searchsorted(np.sort(score[inside]), thresholds, side="right")
    return hits / np.maximum(chosen + inside.sum() - hits, 1)


def energy(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> tuple[float, float]:
    """Energy-based pointing game (Wang et al., CVPR workshops 2020): the share of the positive score that lies on
    objects, and its ratio to chance, the objects' share of the area. Without any positive score it is spread evenly."""
    area = float(inside.mean())
    positive = np.clip(score, 0, None)
    share = float(positive[inside].sum() / positive.sum()) if positive.sum() > 0 else area
    return share, share / area if area else float("nan")


def largest_box(
    chosen: Bool[Array, "rows columns"], points: Float[Array, "rows columns 2"]
) -> tuple[float, float, float, float] | None:
    """The box (xyxy px) of the largest connected component of the chosen places; None where none is chosen."""
    regions = regionprops(label(chosen, connectivity=1))
    if not regions:
        return None
    top, left, bottom, right = max(regions, key=lambda region: region.area).bbox
    half = (points[-1, -1] - points[0, 0]) / np.maximum(np.array(chosen.shape) - 1, 1) / 2
    y0, x0 = points[top, left] - half
    y1, x1 = points[bottom - 1, right - 1] + half
    return float(x0), float(y0), float(x1), float(y1)


def box_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """IoU of boxes, xyxy."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=-1) for boxes in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-9)

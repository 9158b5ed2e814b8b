"""Average precision and recall of segments or boxes against objects, as COCO counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

Array = np.ndarray
IOUS = tuple(np.round(np.arange(0.5, 0.96, 0.05), 2).tolist())
MOST = 100
"""Number of segments per image that count."""


@dataclass(frozen=True)
class Matches:
    """The segments of an image, best first, matched with its objects at t IoU thresholds."""

    scores: Float[Array, " s"]
    hit: Bool[Array, "t s"]
    """Matched an object that counts."""
    skipped: Bool[Array, "t s"]
    """Matched an ignored object, which is neither right nor wrong."""
    objects: int


def mask_iou(
    segments: Bool[Array, "s p"], objects: Bool[Array, "m p"], ignored: Bool[Array, " m"]
) -> Float[Array, "s m"]:
    """IoU of masks given as places; with ignored objects, the share of the segment that is covered, as in COCO."""
    a, b = segments.astype(np.float32), objects.astype(np.float32)
    return iou_of_areas(a @ b.T, a.sum(axis=1), b.sum(axis=1), ignored)


def iou_of_areas(
    common: Shaped[Array, "s m"],
    segments: Shaped[Array, " s"],
    objects: Shaped[Array, " m"],
    ignored: Bool[Array, " m"],
) -> Float[Array, "s m"]:
    """The same from areas: those of the intersections, the segments and the objects."""
    whole = np.where(ignored[None], segments[:, None], segments[:, None] + objects[None] - common)
    return common / np.maximum(whole.astype(float), 1)


def match(iou: Float[Array, "s m"], scores: Float[Array, " s"], ignored: Bool[Array, " m"]) -> Matches:
    """Match each segment, best first, with the free object that it overlaps most (COCO's greedy rule).

    Objects that count take precedence over ignored ones. An ignored object can be matched many times.
    """
    order = np.argsort(-scores, kind="stable")[:MOST]
    hit = np.zeros((len(IOUS), len(order)), dtype=bool)
    skipped = np.zeros_like(hit)
    counted, crowd = np.flatnonzero(~ignored), np.flatnonzero(ignored)
    # Most segments overlap no object by the lowest threshold, and so match none.
    near = [(place, order[place]) for place in np.flatnonzero(iou[order].max(axis=1, initial=0) >= IOUS[0])]
    for t, threshold in enumerate(IOUS):
        free = np.ones(iou.shape[1], dtype=bool)
        for place, segment in near:
            best = _best(iou[segment], counted[free[counted]], threshold)
            if best is not None:
                hit[t, place], free[best] = True, False
            elif _best(iou[segment], crowd, threshold) is not None:
                skipped[t, place] = True
    return Matches(scores[order], hit, skipped, len(counted))


def _best(iou: Array, candidates: Array, threshold: float) -> int | None:
    if not candidates.size:
        return None
    # Of equal overlaps COCO takes the last.
    best = candidates[len(candidates) - 1 - int(np.argmax(iou[candidates][::-1]))]
    return int(best) if iou[best] >= min(threshold, 1 - 1e-10) else None


@dataclass(frozen=True)
class Pooled:
    """The segments of n images together, best first."""

    hit: Bool[Array, "t s"]
    skipped: Bool[Array, "t s"]
    image: Int[Array, " s"]
    """Index of the image of each segment."""
    objects: Int[Array, " n"]
    """Number of objects that count, per image."""

    @classmethod
    def of(cls, images: Sequence[Matches]) -> Pooled:
        """Merge the segments of all images in one order."""
        scores = np.concatenate([np.zeros(0), *(one.scores for one in images)])
        order = np.argsort(-scores, kind="stable")
        empty = np.zeros((len(IOUS), 0), dtype=bool)
        hit = np.concatenate([empty, *(one.hit for one in images)], axis=1)
        skipped = np.concatenate([empty, *(one.skipped for one in images)], axis=1)
        image = np.repeat(np.arange(len(images)), [len(one.scores) for one in images])
        return cls(hit[:, order], skipped[:, order], image[order], np.array([one.objects for one in images], dtype=int))


RECALLS = np.linspace(0, 1, 101)
"""Recall values at which COCO reads the precision."""
BLOCK = 4_000_000
"""Number of weights processed at once."""


def average_precision(pooled: Pooled, weights: Float[Array, "b n"]) -> Float[Array, "b t"]:
    """COCO's AP (precision at 101 recall values) at each IoU threshold; NaN without objects.

    Each row of ``weights`` holds a weight per image, as a bootstrap draws them.
    """
    step = max(1, BLOCK // max(len(pooled.image), 1))
    blocks = [_average_precision(pooled, weights[i : i + step]) for i in range(0, len(weights), step)]
    return np.concatenate([np.zeros((0, len(IOUS))), *blocks])


def _average_precision(pooled: Pooled, weights: Float[Array, "b n"]) -> Float[Array, "b t"]:
    objects = (weights @ pooled.objects)[:, None]
    counts = weights[:, pooled.image]
    # Precision peaks, and recall rises, only at segments that match an object, so the others need not be evaluated.
    matched = np.flatnonzero(pooled.hit.any(axis=0))
    found = np.cumsum(counts, axis=1)[:, matched]
    ap = np.zeros((len(weights), len(IOUS)))
    for threshold, (hit, skipped) in enumerate(zip(pooled.hit, pooled.skipped, strict=True)):
        own = np.flatnonzero(hit[matched])
        right, chosen = np.cumsum(counts[:, matched[own]], axis=1), found[:, own]
        if skipped.any():
            ignored = np.flatnonzero(skipped)
            before = np.cumsum(np.pad(counts[:, ignored], ((0, 0), (1, 0))), axis=1)
            chosen = chosen - before[:, np.searchsorted(ignored, matched[own])]
        precision = right / np.maximum(chosen, 1e-12)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # The number of recall values reached with each.
        reached = np.searchsorted(RECALLS, right / np.maximum(objects, 1e-12), side="right")
        ap[:, threshold] = (envelope * np.diff(reached, prepend=0, axis=1)).sum(axis=1) / len(RECALLS)
    return np.where(objects > 0, ap, np.nan)

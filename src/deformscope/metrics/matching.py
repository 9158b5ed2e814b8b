"""Average precision and recall of segments or boxes against objects, as COCO counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

Array = np.ndarray
IOUS = tuple(np.round(np.arange(0.5, 0.96, 0.05), 2).tolist())
MOST = 100
"""Segments an image that count."""


@dataclass(frozen=True)
class Matches:
    """One image's segments, best first, against its objects at t IoU thresholds."""

    scores: Float[Array, " s"]
    hit: Bool[Array, "t s"]
    """Matched an object that counts."""
    skipped: Bool[Array, "t s"]
    """Matched an ignored object: neither right nor wrong."""
    objects: int


def mask_iou(
    segments: Bool[Array, "s p"], objects: Bool[Array, "m p"], ignored: Bool[Array, " m"]
) -> Float[Array, "s m"]:
    """IoU of masks given as places; against an ignored object the share of the segment that it covers, as COCO does."""
    a, b = segments.astype(np.float32), objects.astype(np.float32)
    return iou_of_areas(a @ b.T, a.sum(axis=1), b.sum(axis=1), ignored)


def iou_of_areas(
    common: Shaped[Array, "s m"],
    segments: Shaped[Array, " s"],
    objects: Shaped[Array, " m"],
    ignored: Bool[Array, " m"],
) -> Float[Array, "s m"]:
    """The same of areas: what a segment and an object have in common, and each one's own."""
    whole = np.where(ignored[None], segments[:, None], segments[:, None] + objects[None] - common)
    return common / np.maximum(whole.astype(float), 1)


def match(iou: Float[Array, "s m"], scores: Float[Array, " s"], ignored: Bool[Array, " m"]) -> Matches:
    """Give each segment, best first, the free object that it overlaps most (COCO's greedy rule).

    An object that counts goes before an ignored one; an ignored one may be matched many times.
    """
    order = np.argsort(-scores, kind="stable")[:MOST]
    hit = np.zeros((len(IOUS), len(order)), dtype=bool)
    skipped = np.zeros_like(hit)
    counted, crowd = np.flatnonzero(~ignored), np.flatnonzero(ignored)
    # A segment that overlaps nothing by the lowest threshold matches nothing: most are such.
    near = [(place, segment) for place, segment in enumerate(order) if iou[segment].max(initial=0) >= IOUS[0]]
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


def average_precision(images: Sequence[Matches], weights: Float[Array, " n"] | None = None) -> Float[Array, " t"]:
    """COCO's AP (precision at 101 recalls) at each IoU threshold; NaN without objects.

    ``weights`` count each image so many times, as a bootstrap draws it.
    """
    counts = np.ones(len(images)) if weights is None else weights
    objects = float(sum(count * m.objects for count, m in zip(counts, images, strict=True)))
    if not objects:
        return np.full(len(IOUS), np.nan)
    _, hit, skipped, image = pooled(images)
    return ap_of(hit, skipped, counts[image], objects)


def pooled(images: Sequence[Matches]) -> tuple[Array, Array, Array, Array]:
    """All images' segments, best first: scores [s], hit [t s], skipped [t s], and the image of each [s]."""
    scores = np.concatenate([m.scores for m in images]) if images else np.zeros(0)
    order = np.argsort(-scores, kind="stable")
    empty = np.zeros((len(IOUS), 0), dtype=bool)
    hit = np.concatenate([empty, *(m.hit for m in images)], axis=1)
    skipped = np.concatenate([empty, *(m.skipped for m in images)], axis=1)
    image = np.repeat(np.arange(len(images)), [len(m.scores) for m in images])
    return scores[order], hit[:, order], skipped[:, order], image[order]


def ap_of(
    hit: Bool[Array, "t s"], skipped: Bool[Array, "t s"], weights: Float[Array, " s"], objects: float
) -> Float[Array, " t"]:
    """AP at each threshold of pooled segments, best first, each counted ``weights`` times."""
    recalls = np.linspace(0, 1, 101)
    right = np.cumsum(hit * weights, axis=1)
    wrong = np.cumsum(~(hit | skipped) * weights, axis=1)
    precision = right / np.maximum(right + wrong, 1e-12)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.append(envelope, np.zeros((len(hit), 1)), axis=1)  # a recall that is never reached
    places = [np.searchsorted(line / objects, recalls, side="left") for line in right]
    return np.array([line[place].mean() for line, place in zip(padded, places, strict=True)])


def recall(image: Matches) -> float:
    """Share of an image's objects that one of its segments matches, mean over the thresholds (AR's summand)."""
    return float(image.hit.sum(axis=1).mean() / image.objects) if image.objects else float("nan")

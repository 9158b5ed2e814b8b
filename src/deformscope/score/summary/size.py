"""Metrics of size: do the circles tell the sizes of objects? Computed for all bootstrap samples at once.

``weights`` [b o] say how often each of the o objects counts in each of b samples. All functions return [b].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray
BOUNDS = (32.0, 96.0)
"""COCO's S/M/L, as sqrt(width · height) px."""


def r_squared(radius: Float[Array, " o"], size: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """R² of the straight line from log r to log size, over the objects with r > 0."""
    seen = radius > 0
    log_r, log_size = np.log(radius[seen])[None], np.log(size[seen])[None]
    return correlation(log_r, log_size, weights[:, seen]) ** 2


def ranks(values: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, "b o"]:
    """Ranks of values that occur ``weights`` times each; equal values share their mean rank."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    count = np.add.reduceat(weights[:, order], start, axis=1) if len(order) else weights
    mean = np.cumsum(count, axis=1) - (count - 1) / 2
    result = np.empty(weights.shape)
    result[:, order] = np.repeat(mean, np.diff(np.append(start, len(order))), axis=1)
    return result


def correlation(a: Float[Array, "#b o"], b: Float[Array, "#b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """Pearson's correlation for each row of weights (of :func:`ranks`, Spearman's); NaN if a or b is constant."""
    total = np.maximum(weights.sum(axis=1), 1e-12)
    a, b = (values - (np.einsum("bo,bo->b", weights, values) / total)[:, None] for values in (a, b))
    weighted = weights * a
    spread = np.sqrt(np.einsum("bo,bo->b", weighted, a) * np.einsum("bo,bo,bo->b", weights, b, b))
    # Less is rounding, not variation.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, np.einsum("bo,bo->b", weighted, b) / spread, np.nan)


def median(values: Float[Array, "b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The weighted median of each row (of an even count the mean of the middle two); NaN without any weight."""
    # Taking from the flat array is several times as quick as np.take_along_axis.
    order = np.argsort(values, axis=1) + np.arange(len(values))[:, None] * values.shape[1]
    return _middle(values.take(order), weights.take(order))


def fit(radius: Float[Array, " o"], size: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The one parameter a of size ≈ a · r: the median of size / r over the objects with r > 0."""
    seen = np.flatnonzero(radius > 0)
    ratio = size[seen] / radius[seen]
    order = np.argsort(ratio)
    return _middle(ratio[order][None], weights[:, seen[order]])


def _middle(ordered: Float[Array, "#b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The weighted median of ascending values."""
    if not ordered.shape[1]:
        return np.full(len(weights), np.nan)
    below = np.cumsum(weights, axis=1)
    half, last = below[:, -1:] / 2, ordered.shape[1] - 1
    middle = [np.minimum((below < half + shift).sum(axis=1), last) for shift in (-1e-9, 1e-9)]
    rows = np.arange(len(weights)) if len(ordered) > 1 else np.zeros(len(weights), dtype=int)
    low, high = (ordered[rows, place] for place in middle)
    return np.where(below[:, -1] > 0, (low + high) / 2, np.nan)


def crossed(
    radius: Float[Array, " o"], size: Float[Array, " o"], half: Bool[Array, " o"], weights: Float[Array, "b o"]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Median relative error |a·r − size| / size, and the share of objects whose size class (S, M, L) a·r predicts.

    a is fitted on the other ``half`` of the photos than the one an object belongs to, both ways.
    """
    factor = [fit(radius[side], size[side], weights[:, side]) for side in (~half, half)]
    predicted = np.where(half, factor[0][:, None], factor[1][:, None]) * radius
    error = np.abs(predicted - size) / size
    known = np.isfinite(error)
    used = np.where(known, weights, 0)
    right = _size_class(predicted) == _size_class(size)
    total = used.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(total > 0, np.einsum("bo,bo->b", used, right) / total, np.nan)
    return median(np.where(known, error, np.inf), used), accuracy


def _size_class(size: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """0, 1, 2 for S, M, L; NaN counts as S."""
    return (size >= BOUNDS[0]).astype(np.int8) + (size >= BOUNDS[1])

"""Do the circles tell objects' sizes? Every figure with weights, one row a draw of a bootstrap, in one pass.

``weights`` [b o] count each of the o objects so many times; a row of ones gives the plain figure. All return [b].
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

Array = np.ndarray
BOUNDS = (32.0, 96.0)
"""COCO's S/M/L, as sqrt(width · height) px."""


def spearman(a: Float[Array, " o"], b: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """Spearman's ρ, ties at their mean rank; NaN where one of the two does not vary."""
    return correlation(ranks(a, weights), ranks(b, weights), weights)


def r_squared(radius: Float[Array, " o"], size: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """R² of the straight line from log r to log size, over the objects with r > 0."""
    seen = radius > 0
    log_r, log_size = (np.log(values[seen])[None].repeat(len(weights), axis=0) for values in (radius, size))
    return correlation(log_r, log_size, weights[:, seen]) ** 2


def ranks(values: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, "b o"]:
    """Ranks among values of which each occurs ``weights`` times; equal ones share their mean rank."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    start = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
    count = np.add.reduceat(weights[:, order], start, axis=1) if len(order) else weights
    mean = np.cumsum(count, axis=1) - (count - 1) / 2
    result = np.empty(weights.shape)
    result[:, order] = np.repeat(mean, np.diff(np.append(start, len(order))), axis=1)
    return result


def correlation(a: Float[Array, "b o"], b: Float[Array, "b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """Pearson's correlation, each row by its own weights; NaN where one of the two does not vary."""
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    a, b = (values - (weights * values).sum(axis=1, keepdims=True) / total for values in (a, b))
    spread = np.sqrt((weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))
    # A millionth of the values' own scale is rounding, not variation.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-9, (weights * a * b).sum(axis=1) / spread, np.nan)


def median(values: Float[Array, "b o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The weighted median of each row (of an even count the mean of the middle two); NaN without any weight."""
    if not values.shape[1]:
        return np.full(len(weights), np.nan)
    order = np.argsort(values, axis=1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=1)
    below = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    half, last = below[:, -1:] / 2, values.shape[1] - 1
    middle = [np.minimum((below < half + shift).sum(axis=1), last) for shift in (-1e-9, 1e-9)]
    low, high = (ordered[np.arange(len(ordered)), place] for place in middle)
    return np.where(below[:, -1] > 0, (low + high) / 2, np.nan)


def fit(radius: Float[Array, " o"], size: Float[Array, " o"], weights: Float[Array, "b o"]) -> Float[Array, " b"]:
    """The one parameter a of size ≈ a · r: the median of size / r over the objects with r > 0."""
    seen = radius > 0
    ratio = (size[seen] / radius[seen])[None].repeat(len(weights), axis=0)
    return median(ratio, weights[:, seen])


def crossed(
    radius: Float[Array, " o"], size: Float[Array, " o"], half: Bool[Array, " o"], weights: Float[Array, "b o"]
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Median relative error |a·r − size| / size, and the share of objects whose S/M/L a·r gets right.

    a is fitted on the other ``half`` of the photos than the one an object belongs to, both ways.
    """
    predicted = np.empty(weights.shape)
    for side in (half, ~half):
        factor = fit(radius[~side], size[~side], weights[:, ~side])
        predicted[:, side] = factor[:, None] * radius[side]
    error = np.abs(predicted - size) / size
    known = np.isfinite(error)
    used = np.where(known, weights, 0)
    right = np.digitize(np.nan_to_num(predicted), BOUNDS) == np.digitize(size, BOUNDS)[None]
    total = used.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(total > 0, (used * right).sum(axis=1) / total, np.nan)
    return median(np.where(known, error, np.inf), used), accuracy

"""95 % intervals by resampling photos (not objects or cells, which are similar within a photo)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def draws(images: int, count: int, seed: int = 0) -> Float[Array, "_ images"]:
    """Weights per image: all ones, then ``count`` samples of ``images`` images drawn with replacement.

    They are the same for every metric, so that differences between metrics are paired.
    """
    plain = np.ones((1, images))
    if not images:
        return np.ones((count + 1, 0))
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)
    return np.concatenate([plain, drawn])


def mean(values: Float[Array, " i"], weights: Float[Array, "b i"]) -> Float[Array, " b"]:
    """Weighted means of the values that are not NaN; NaN if all are."""
    there = np.isfinite(values)
    counts = weights[:, there]
    total = counts.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, counts @ values[there] / total, np.nan)


def interval(drawn: Float[Array, " b"]) -> tuple[float, float]:
    """The middle 95 % of the draws (percentile method); NaN if more than a tenth of them are NaN."""
    low, high = intervals(drawn[None])[0]
    return float(low), float(high)


def intervals(drawn: Float[Array, "r b"]) -> Float[Array, "r 2"]:
    """:func:`interval` of each row, computed together."""
    found = np.full((len(drawn), 2), np.nan)
    there = np.isfinite(drawn)
    count = there.sum(axis=1)
    whole = (count == drawn.shape[1]) & (count >= 2)
    if whole.any():
        found[whole] = np.percentile(drawn[whole], [2.5, 97.5], axis=1).T
    for row in np.flatnonzero(~whole & (count >= max(2, 0.9 * drawn.shape[1]))):
        found[row] = np.percentile(drawn[row][there[row]], [2.5, 97.5])
    return found

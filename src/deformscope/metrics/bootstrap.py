"""95 % intervals by resampling photos (not objects or cells, which are alike within a photo)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

Array = np.ndarray


def draws(images: int, count: int, seed: int = 0) -> Float[Array, "_ images"]:
    """How often each image occurs: first once each, then in ``count`` samples of as many, drawn with replacement.

    The same for every figure, so that differences between figures are paired.
    """
    plain = np.ones((1, images))
    if not images:
        return np.ones((count + 1, 0))
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=count)
    return np.concatenate([plain, drawn])


def mean(values: Float[Array, " i"], weights: Float[Array, "b i"]) -> Float[Array, " b"]:
    """Weighted means of the values that are there (not NaN); NaN where none is."""
    there = np.isfinite(values)
    total = weights[:, there].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, weights[:, there] @ values[there] / total, np.nan)


def interval(drawn: Float[Array, " b"]) -> tuple[float, float]:
    """The middle 95 % of the draws (percentile method); NaN where a tenth of them gave nothing."""
    there = drawn[np.isfinite(drawn)]
    if len(there) < max(2, 0.9 * len(drawn)):
        return float("nan"), float("nan")
    low, high = np.percentile(there, [2.5, 97.5])
    return float(low), float(high)

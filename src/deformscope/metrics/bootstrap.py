"""95 % intervals by resampling photos (not objects or cells, which are similar within a photo)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, drawn: Float[Array, " b"]) -> Estimate:
        """The value on all photos, which comes first, with the interval of the others."""
        return estimates(drawn[None])[0]

    def text(self, digits: int = 3, *, interval: bool = True) -> str:
        """``0.830 [0.790, 0.870]``, with a true minus sign and a dash for NaN."""
        numbers = [
            # Adding zero makes a negative zero positive.
            f"{round(v, digits) + 0.0:.{digits}f}".replace("-", "−") if math.isfinite(v) else "–"
            for v in (self.value, self.low, self.high)
        ]
        return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]" if interval and numbers[0] != "–" else numbers[0]

    def to_json(self, digits: int) -> list[float | None]:
        """Value, low and high; NaN as null."""
        return [round(v, digits) if math.isfinite(v) else None for v in (self.value, self.low, self.high)]

    @classmethod
    def from_json(cls, numbers: Sequence[float | None]) -> Estimate:
        """What :meth:`to_json` made. Raises TypeError or ValueError for anything else."""
        value, low, high = (math.nan if one is None else float(one) for one in numbers)
        return cls(value, low, high)


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


def estimates(drawn: Float[Array, "r b"]) -> list[Estimate]:
    """:meth:`Estimate.of` each row, computed together."""
    return [Estimate(*map(float, row)) for row in np.column_stack([drawn[:, 0], intervals(drawn[:, 1:])])]

"""Means of an ablation's runs, their spread over seeds, and paired differences between modes with three intervals.

Runs of one seed share initial weights and data, so differences within a seed have less noise. The interval of a mean
difference is a bootstrap over seeds (Efron, 1979). It is too narrow with few seeds, so there is also Student's
interval, which assumes normal differences, and one over photos for the given seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...detectors.offset_mode import OFFSET_MODES, OffsetMode
from ...errors import DeformscopeError
from ...metrics import bootstrap
from ..run.run_folder import Result

NAMES = {"none": "none", "feature": "only d_f", "kernel": "only d_k", "full": "both"}
PAPER = {
    "Faster R-CNN, box": {"none": 37.4, "feature": 38.0, "kernel": 41.3, "full": 41.6},
    "Mask R-CNN, box": {"none": 38.2, "feature": 38.8, "kernel": 41.8, "full": 42.0},
    "Mask R-CNN, mask": {"none": 34.7, "feature": 35.1, "kernel": 37.5, "full": 37.6},
}
"""AP on COCO val2017 (Zhang et al., ICPRAM 2021, Table 1)."""
Resampled = Mapping[tuple[str, int], np.ndarray]
"""Resampled AP by mode and seed, from :func:`deformscope.training.ablation.ap_bootstrap.resampled`."""
RESAMPLES = 10_000


@dataclass(frozen=True)
class Difference:
    """``over`` minus ``under`` for each seed."""

    over: str
    under: str
    mean: float
    bootstrap: tuple[float, float]
    """95 % interval over seeds, by bootstrap."""
    student: tuple[float, float] | None
    """95 % interval over seeds, Student's; None with one seed."""
    photos: tuple[float, float] | None
    """95 % interval over photos; None if it was not computed."""
    seeds: int


@dataclass(frozen=True)
class Summary:
    """One measure of all runs."""

    measure: str
    values: dict[str, dict[int, float]]
    """Mode, seed, value."""
    differences: list[Difference]

    def mean(self, mode: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values[mode].values())

    def spread(self, mode: str) -> float | None:
        """Standard deviation over seeds; None with one."""
        values = list(self.values[mode].values())
        return statistics.stdev(values) if len(values) > 1 else None


def summarise(results: Sequence[Result], measure: str = "ap", resampled: Resampled | None = None) -> Summary:
    """Means and paired differences: each mode against ``none``, and ``full`` against ``kernel`` and ``feature``.

    ``resampled`` holds the measure of each run on samples of photos, the same samples for all runs.
    """
    values: dict[str, dict[int, float]] = {}
    for mode in OFFSET_MODES:
        own = {r.seed: r.scores.get(measure) for r in results if r.offset_mode == mode}
        known = {seed: value for seed, value in own.items() if value is not None}
        if known:
            values[mode] = known
    if not values:
        raise DeformscopeError(f"measure={measure!r}: no run has it; expected one of {', '.join(results[0].scores)}")
    pairs: list[tuple[OffsetMode, OffsetMode]] = [(mode, "none") for mode in OFFSET_MODES if mode != "none"]
    pairs += [("full", "feature"), ("full", "kernel"), ("kernel", "feature")]
    differences = [_difference(values, resampled or {}, *pair) for pair in pairs if set(pair) <= values.keys()]
    return Summary(measure, values, [one for one in differences if one is not None])


def _difference(values: dict[str, dict[int, float]], resampled: Resampled, over: str, under: str) -> Difference | None:
    seeds = sorted(values[over].keys() & values[under].keys())
    if not seeds:
        return None
    gaps = np.array([values[over][seed] - values[under][seed] for seed in seeds])
    random = np.random.default_rng(0)
    means = gaps[random.integers(0, len(gaps), (RESAMPLES, len(gaps)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    photos = None
    if all((mode, seed) in resampled for mode in (over, under) for seed in seeds):
        drawn = np.mean([resampled[over, seed] - resampled[under, seed] for seed in seeds], axis=0)
        photos = bootstrap.interval(drawn[1:])
    return Difference(over, under, float(gaps.mean()), (float(low), float(high)), _student(gaps), photos, len(gaps))


def _student(gaps: np.ndarray) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean; None with one value."""
    if len(gaps) < 2:
        return None
    from scipy.stats import t

    reach = float(t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return float(gaps.mean()) - reach, float(gaps.mean()) + reach

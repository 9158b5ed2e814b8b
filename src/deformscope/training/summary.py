"""Means of an ablation's runs, their spread over seeds, and paired differences between modes with three intervals.

Runs of one seed share initial weights and data, so differences within a seed have less noise. The interval of a mean
difference is a bootstrap over seeds (Efron, 1979). It is too narrow with few seeds, so there is also Student's
interval, which assumes normal differences, and one over photos for the given seeds: AP as by COCO with a weight per
photo; with all weights one it is that of :mod:`deformscope.metrics.coco`.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.values import mask_library
from ..detectors.options import OFFSET_MODES, OffsetMode
from ..errors import DeformscopeError
from ..metrics import bootstrap
from ..metrics.matching import Matches, Pooled, average_precision, match
from .datamodule import evaluated, source
from .recipe import Recipe
from .run_folder import DETECTIONS, Result, kept_recipe

NAMES = {"none": "none", "feature": "only d_f", "kernel": "only d_k", "full": "both"}
PAPER = {
    "Faster R-CNN, box": {"none": 37.4, "feature": 38.0, "kernel": 41.3, "full": 41.6},
    "Mask R-CNN, box": {"none": 38.2, "feature": 38.8, "kernel": 41.8, "full": 42.0},
    "Mask R-CNN, mask": {"none": 34.7, "feature": 35.1, "kernel": 37.5, "full": 37.6},
}
"""AP on COCO val2017 (Zhang et al., ICPRAM 2021, Table 1)."""
Resampled = Mapping[tuple[str, int], np.ndarray]
"""Resampled AP by mode and seed, from :func:`resampled`."""
DRAWS = 300
"""Samples of photos."""
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


def of_runs(recipe: Recipe, folder: Path, results: Sequence[Result]) -> dict[tuple[str, int], np.ndarray]:
    """:func:`resampled` for the runs of an ablation in ``folder``; runs without saved detections are left out."""
    truth, found = _evaluated_truth(recipe), {}
    for result in results:
        path = folder / f"{result.offset_mode}-seed{result.seed}" / DETECTIONS
        if path.exists():
            detections = json.loads(path.read_bytes())
            found[result.offset_mode, result.seed] = resampled(truth, detections, recipe.evaluation.classes)
    return found


def of_run(folder: Path) -> np.ndarray:
    """:func:`resampled` for the run in ``folder``, AP of boxes in percent, [1 + draws], on the photos of its recipe.

    Raises DeformscopeError where the folder holds no recipe.
    """
    recipe = kept_recipe(folder)
    detections = json.loads((folder / DETECTIONS).read_bytes())
    return resampled(_evaluated_truth(recipe), detections, recipe.evaluation.classes)


def _evaluated_truth(recipe: Recipe) -> dict[str, Any]:
    """The annotations of the photos on which runs of the recipe are evaluated, in COCO's format."""
    val = source(recipe, "val")
    whole = val.truth()
    images = [whole["images"][index] for index in evaluated(recipe, val)]
    ids = {image["id"] for image in images}
    return whole | {"images": images, "annotations": [o for o in whole["annotations"] if o["image_id"] in ids]}


def resampled(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str] = (), draws: int = DRAWS
) -> np.ndarray:
    """AP of boxes in percent, [1 + draws]: on all photos, then on ``draws`` samples of them with replacement.

    ``truth`` and ``results`` are in COCO's formats. The samples depend only on the number of photos, so that
    differences between runs are paired. A class counts in a sample that has an object of it; NaN where no class does.
    """
    weights = bootstrap.draws(len(truth["images"]), draws)
    by_class = [average_precision(Pooled.of(one), weights).mean(axis=1) for one in _matched(truth, results, classes)]
    found = np.array(by_class).reshape(-1, len(weights))
    counted = np.isfinite(found).sum(axis=0)
    return np.where(counted, 100 * np.nansum(found, axis=0) / np.maximum(counted, 1), np.nan)


def _matched(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str]
) -> Iterator[list[Matches]]:
    """For each class that has objects, the matches of each photo, in order."""
    objects, detections = defaultdict(list), defaultdict(list)
    for one in truth["annotations"]:
        objects[one["category_id"], one["image_id"]].append(one)
    for one in results:
        detections[one["category_id"], one["image_id"]].append(one)
    for category in sorted(truth["categories"], key=lambda c: c["id"]):
        if classes and category["name"] not in classes:
            continue
        pairs = [
            (objects[category["id"], image["id"]], detections[category["id"], image["id"]]) for image in truth["images"]
        ]
        matches = [_match(own, found) for own, found in pairs]
        if any(one.objects for one in matches):
            yield matches


def _match(objects: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> Matches:
    crowd = np.array([bool(one.get("iscrowd")) for one in objects], dtype=bool)
    iou = np.zeros((len(found), len(objects)))
    if iou.size:
        boxes, own = ([one["bbox"] for one in several] for several in (found, objects))
        iou = np.asarray(mask_library().iou(boxes, own, crowd.astype(np.uint8).tolist()))
    return match(iou, np.array([one["score"] for one in found], dtype=float), crowd)

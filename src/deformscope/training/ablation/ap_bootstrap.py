"""Intervals of AP by resampling photos (bootstrap; Efron, 1979).

AP is computed as by COCO, with a weight per photo; with all weights one it is that of :mod:`deformscope.metrics.coco`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.values import mask_library
from ...metrics import bootstrap
from ...metrics.matching import Matches, Pooled, average_precision, match
from ..data.datamodule import evaluated, source
from ..recipe.recipe import Recipe
from ..run.run_folder import DETECTIONS, Result, kept_recipe

DRAWS = 300
Run = tuple[str, int]
"""Offset mode and seed."""


def of_runs(recipe: Recipe, folder: Path, results: Sequence[Result]) -> dict[Run, np.ndarray]:
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

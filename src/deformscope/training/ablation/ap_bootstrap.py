"""How much of a difference between runs is the doing of these photos: AP resampled over the photos (Efron, 1979).

Counting is COCO's, with each photo's weight; with weights of one it gives :mod:`deformscope.metrics.coco`'s AP.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...metrics import bootstrap
from ...metrics.matching import Matches, ap_of, match, pooled
from ..data.datamodule import evaluated, source
from ..recipe.recipe import Recipe
from ..run.run_folder import DETECTIONS, Result

DRAWS = 300
Pooled = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Detections of a class, best first: hit and skipped [t s], the photo of each [s]; and the objects of each photo."""


Run = tuple[str, int]
"""Offset mode and seed."""


def of_runs(recipe: Recipe, folder: Path, results: Sequence[Result]) -> dict[Run, np.ndarray]:
    """:func:`resampled` of the ablation's runs below ``folder``; without those that kept no detections."""
    val = source(recipe, "val")
    whole = val.truth()
    images = [whole["images"][index] for index in evaluated(recipe, val)]
    ids = {image["id"] for image in images}
    truth = whole | {"images": images, "annotations": [o for o in whole["annotations"] if o["image_id"] in ids]}
    found = {}
    for result in results:
        path = folder / f"{result.offset_mode}-seed{result.seed}" / DETECTIONS
        if path.exists():
            detections = json.loads(path.read_bytes())
            found[result.offset_mode, result.seed] = resampled(truth, detections, recipe.evaluation.classes)
    return found


def resampled(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str] = (), draws: int = DRAWS
) -> np.ndarray:
    """AP of boxes, percent [1 + draws]: on the photos as they are, then on samples of as many drawn with replacement.

    ``truth`` and ``results`` are in COCO's formats. The samples are the same for all runs on as many photos, so that
    differences are paired. A class counts in a draw when the draw has an object of it; NaN where none has.
    """
    weights = bootstrap.draws(len(truth["images"]), draws)
    by_class = [_pool(one) for one in _matched(truth, results, classes)]
    found = np.full((len(by_class), len(weights)), np.nan)
    for row, (hit, skipped, photo, objects) in zip(found, by_class, strict=True):
        for place, weight in enumerate(weights):
            total = float(weight @ objects)
            if total:
                row[place] = ap_of(hit, skipped, weight[photo], total).mean()
    counted = np.isfinite(found).sum(axis=0)
    return np.where(counted, 100 * np.nansum(found, axis=0) / np.maximum(counted, 1), np.nan)


def _matched(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str]
) -> Iterator[list[Matches]]:
    """Of each class that has an object, the photos' matches in order."""
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
    a = np.array([one["bbox"] for one in found], dtype=float).reshape(-1, 1, 4)
    b = np.array([one["bbox"] for one in objects], dtype=float).reshape(1, -1, 4)
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    area, other = a[..., 2:].prod(axis=2), b[..., 2:].prod(axis=2)
    # Of a crowd it counts how much of the detection lies in it.
    whole = np.where(crowd[None], area, area + other - common)
    return match(common / np.maximum(whole, 1e-12), np.array([one["score"] for one in found], dtype=float), crowd)


def _pool(matches: Sequence[Matches]) -> Pooled:
    _, hit, skipped, photo = pooled(matches)
    return hit, skipped, photo, np.array([one.objects for one in matches], dtype=float)

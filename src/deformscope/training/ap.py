"""COCO's average precision over all classes or some, in and after training, with each class's own.

Counting is the library's that :mod:`deformscope.evaluate` uses.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..evaluate import _backend

AREAS = {"ap_small": 1, "ap_medium": 2, "ap_large": 3}
"""Indices of COCO's area ranges: below 32² px, below 96² px, the rest."""
MEASURES = ("ap", "ap50", "ap75", *AREAS)


def average_precision(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str] = (), kind: str = "bbox"
) -> dict[str, float | None]:
    """``ap`` (IoU .50:.05:.95), ``ap50``, ``ap75``, by size, and ``ap/CLASS`` of every class; percent.

    ``truth`` and ``results`` are in COCO's formats, ``kind`` is ``bbox`` or ``segm``. Averages are over ``classes``,
    or all. None where no object counts.
    """
    names = [category["name"] for category in sorted(truth["categories"], key=lambda c: c["id"])]
    chosen = [index for index, name in enumerate(names) if not classes or name in classes]
    if not results:
        precision = np.where(_counts(truth, names)[None, None, :, None], 0.0, -1.0) * np.ones((10, 101, 1, 4))
    else:
        precision = _precision(truth, results, kind)
    found = {
        "ap": _mean(precision[:, :, chosen, 0]),
        "ap50": _mean(precision[0][:, chosen, 0]),
        "ap75": _mean(precision[5][:, chosen, 0]),
    }
    found |= {name: _mean(precision[:, :, chosen, area]) for name, area in AREAS.items()}
    return found | {f"ap/{name}": _mean(precision[:, :, index, 0]) for index, name in enumerate(names)}


def scores(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str] = (), photos: int | None = None
) -> dict[str, float | None]:
    """What is reported of a run: boxes' and, where there are any, masks' (``mask_…``), on the first ``photos``."""
    kept = truth["images"][:photos]
    ids = {image["id"] for image in kept}
    truth = truth | {"images": kept, "annotations": [o for o in truth["annotations"] if o["image_id"] in ids]}
    found = average_precision(truth, results, classes)
    if any("segmentation" in one for one in results):
        masks = average_precision(truth, results, classes, kind="segm")
        found |= {f"mask_{name}": value for name, value in masks.items()}
    return found


def _precision(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str) -> np.ndarray:
    """``[iou recall class area]``, −1 where no object counts."""
    coco, evaluation, _ = _backend()
    key = "bbox" if kind == "bbox" else "segmentation"
    wanted = ("image_id", "category_id", "score", key)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        whole = coco()
        whole.dataset = {"info": {}, "licenses": [], **truth}
        whole.createIndex()
        found = whole.loadRes([{name: one[name] for name in wanted} for one in results])
        run = evaluation(whole, found, iouType=kind)
        run.params.imgIds = [image["id"] for image in truth["images"]]
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1]


def _counts(truth: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    present = {one["category_id"] for one in truth["annotations"] if not one.get("iscrowd")}
    return np.array([category["id"] in present for category in categories])


def _mean(precision: np.ndarray) -> float | None:
    counted = precision[precision > -1]
    return float(100 * counted.mean()) if counted.size else None

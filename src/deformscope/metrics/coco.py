"""COCO's average precision of boxes and masks (Lin et al., ECCV 2014), over all classes or some, and of each.

Counting is faster-coco-eval's, or pycocotools'.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DeformscopeError

AREAS = {"ap_small": 1, "ap_medium": 2, "ap_large": 3}
"""Indices of COCO's area ranges: below 32² px, below 96² px, the rest."""
KINDS = {"bbox": "bbox", "segm": "segmentation"}
"""What is compared, and where a detection has it."""


def average_precision(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str] = (), kind: str = "bbox"
) -> dict[str, float | None]:
    """``ap`` (IoU .50:.05:.95), ``ap50``, ``ap75``, by size, ``recall`` and ``ap/CLASS`` of every class; percent.

    ``truth`` and ``results`` are in COCO's formats, ``kind`` is ``bbox`` or ``segm``. Recall is at 100 detections a
    photo. Averages are over ``classes``, or all. None where no object counts.
    """
    names = [category["name"] for category in sorted(truth["categories"], key=lambda c: c["id"])]
    chosen = [index for index, name in enumerate(names) if not classes or name in classes]
    if not results:
        counts = np.where(_counts(truth), 0.0, -1.0)[:, None]
        precision, recall = (
            np.broadcast_to(counts, (10, 101, len(names), 4)),
            np.broadcast_to(counts, (10, *counts.shape)),
        )
    else:
        precision, recall = _counted(truth, results, kind)
    found = {
        "ap": _mean(precision[:, :, chosen, 0]),
        "ap50": _mean(precision[0][:, chosen, 0]),
        "ap75": _mean(precision[5][:, chosen, 0]),
    }
    found |= {name: _mean(precision[:, :, chosen, area]) for name, area in AREAS.items()}
    found["recall"] = _mean(recall[:, chosen, 0])
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


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A mask (bool ``[h w]``) as COCO's compressed run lengths, for JSON."""
    code = library()[2].encode(np.asfortranarray(mask.astype(np.uint8)))
    return code | {"counts": code["counts"].decode() if isinstance(code["counts"], bytes) else code["counts"]}


def library() -> tuple[Any, Any, Any]:
    """COCO, its evaluation and its run-length codes, of the library that is installed."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
        from faster_coco_eval.core import mask

        return COCO, COCOeval_faster, mask
    except ImportError:
        pass
    try:
        from pycocotools import mask
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval, mask
    except ImportError:
        raise DeformscopeError("no COCO evaluation is installed; run: pip install faster-coco-eval") from None


def _counted(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Precision ``[iou recall class area]`` and recall ``[iou class area]``, −1 where no object counts."""
    coco, evaluation, _ = library()
    wanted = ("image_id", "category_id", "score", KINDS[kind])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools talks
        whole = coco()
        whole.dataset = {"info": {}, "licenses": [], **truth}
        whole.createIndex()
        found = whole.loadRes([{name: one[name] for name in wanted} for one in results])
        run = evaluation(whole, found, iouType=kind)
        run.params.imgIds = [image["id"] for image in truth["images"]]
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1], np.asarray(run.eval["recall"])[..., -1]


def _counts(truth: dict[str, Any]) -> np.ndarray:
    categories = sorted(truth["categories"], key=lambda c: c["id"])
    present = {one["category_id"] for one in truth["annotations"] if not one.get("iscrowd")}
    return np.array([category["id"] in present for category in categories])


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(100 * counted.mean()) if counted.size else None

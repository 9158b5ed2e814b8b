"""COCO's average precision of boxes and masks (Lin et al., ECCV 2014), over all or some classes, and per class.

faster-coco-eval or pycocotools computes it. Both take an object's id of 0 as "no match" and expect integers as ids, so
they get numbers of our own, and any ids can be used.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..datasets.segmentation import checked, decode
from ..datasets.values import flag, rank
from ..errors import DeformscopeError

AREAS = {"ap_small": 1, "ap_medium": 2, "ap_large": 3}
"""Indices of COCO's area ranges: below 32² px, below 96² px, the rest."""
KINDS = {"bbox": "bbox", "segm": "segmentation"}
"""What is compared, and the key of a detection that holds it."""


def average_precision(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], classes: Sequence[str] = (), kind: str = "bbox"
) -> dict[str, float | None]:
    """``ap`` (IoU .50:.05:.95), ``ap50``, ``ap75``, by size, ``recall``, and ``ap/CLASS`` of every class, in percent.

    ``truth`` and ``results`` are in COCO's formats, with ids of any type (``iscrowd`` and ``area`` may be missing);
    ``kind`` is ``bbox`` or ``segm``. Recall is at 100 detections per photo. Averages are over ``classes``, or over all.
    A value is None if there is no object. Results for other photos or classes than those of ``truth`` are ignored.

    Raises DeformscopeError for a class that is not in ``truth``.

    >>> truth = {
    ...     "images": [{"id": "a", "height": 60, "width": 80}],
    ...     "annotations": [{"id": 0, "image_id": "a", "category_id": 7, "bbox": [10, 20, 30, 20]}],
    ...     "categories": [{"id": 7, "name": "cat"}],
    ... }
    >>> results = [{"image_id": "a", "category_id": 7, "bbox": [10, 20, 30, 20], "score": 0.9}]
    >>> round(average_precision(truth, results)["ap/cat"], 3)
    100.0
    """
    truth, results = _numbered(truth, results, kind)
    names = [category["name"] for category in truth["categories"]]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise DeformscopeError(f"classes: {', '.join(map(repr, unknown))}; the annotations have {', '.join(names)}")
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
    """The metrics of a run for boxes and, if detections and all objects have any, masks (``mask_…``).

    Of the first ``photos`` photos.
    """
    kept = truth["images"][:photos]
    ids = {image["id"] for image in kept}
    truth = truth | {"images": kept, "annotations": [o for o in truth["annotations"] if o["image_id"] in ids]}
    found = average_precision(truth, results, classes)
    objects = [one for one in truth["annotations"] if not one.get("iscrowd")]
    if any("segmentation" in one for one in results) and all(one.get("segmentation") for one in objects):
        masks = average_precision(truth, results, classes, kind="segm")
        found |= {f"mask_{name}": value for name, value in masks.items()}
    return found


def library() -> tuple[Any, Any]:
    """COCO and its evaluation, from the installed library."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        pass
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    except ImportError:
        raise DeformscopeError("no COCO evaluation is installed; run: pip install faster-coco-eval") from None


def _counted(truth: dict[str, Any], results: Sequence[dict[str, Any]], kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Precision ``[iou recall class area]`` and recall ``[iou class area]``, −1 where no object counts."""
    coco, evaluation = library()
    wanted = ("image_id", "category_id", "score", KINDS[kind])
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        whole = coco()
        whole.dataset = {"info": {}, "licenses": [], **truth}
        whole.createIndex()
        found = whole.loadRes([{name: one[name] for name in wanted} for one in results])
        run = evaluation(whole, found, iouType=kind)
        run.params.imgIds = [image["id"] for image in truth["images"]]
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1], np.asarray(run.eval["recall"])[..., -1]


def _numbered(
    truth: Mapping[str, Any], results: Sequence[dict[str, Any]], kind: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both with ids 1, 2, …, in the order of the images and of the categories' ids, and with all keys that COCO
    needs."""
    categories = sorted(truth["categories"], key=lambda one: rank(one["id"]))
    image_ids = {image["id"]: number for number, image in enumerate(truth["images"], 1)}
    category_ids = {category["id"]: number for number, category in enumerate(categories, 1)}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}

    def moved(one: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        ids = {"image_id": image_ids[one["image_id"]], "category_id": category_ids[one["category_id"]]}
        return {**one, **ids, **values}

    def there(one: Mapping[str, Any]) -> bool:
        return one["image_id"] in image_ids and one["category_id"] in category_ids

    annotations = [
        moved(one, id=number, iscrowd=int(flag(one.get("iscrowd")) or False), area=_area(one, sizes[one["image_id"]]))
        for number, one in enumerate(filter(there, truth["annotations"]), 1)
    ]
    if kind == "segm":  # crowds may have no mask; detections in their box are then ignored
        annotations = [
            one if one.get("segmentation") else {**one, "segmentation": _outline(one)} for one in annotations
        ]
    return {
        "images": [{**image, "id": number} for number, image in enumerate(truth["images"], 1)],
        "annotations": annotations,
        "categories": [{**category, "id": number} for number, category in enumerate(categories, 1)],
    }, [moved(one) for one in results if there(one)]


def _area(one: Mapping[str, Any], size: tuple[int, int]) -> float:
    """The annotated area, or that of the mask, or of the box, px²."""
    if one.get("area"):
        return float(one["area"])
    if one.get("segmentation"):
        return float(decode(checked(one["segmentation"], size), size).sum())
    return float(one["bbox"][2] * one["bbox"][3])


def _outline(one: Mapping[str, Any]) -> list[list[float]]:
    x, y, w, h = one["bbox"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _counts(truth: dict[str, Any]) -> np.ndarray:
    present = {one["category_id"] for one in truth["annotations"] if not one["iscrowd"]}
    return np.array([category["id"] in present for category in truth["categories"]])


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(100 * counted.mean()) if counted.size else None

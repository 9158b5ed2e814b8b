"""A detector's box and mask AP on a folder in COCO's layout.

Classes are matched by name, so that a detector's order and COCO's gaps in its ids do not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..detectors.detector import Detection, Detector
from ..errors import DeformscopeError
from ..terminal.progress import ProgressBar
from .coco import AREAS, average_precision, run_lengths

SPLITS = ("val2017", "val")
"""Tried in this order where no split is named."""
MEASURES = ("ap", "ap50", "ap75", *AREAS, "recall")
"""What a :class:`Score` holds, by the names of :func:`average_precision`."""


@dataclass(frozen=True)
class Score:
    """COCO's measures of one kind of detection, percent; NaN where there is no object to find."""

    kind: str
    """``box`` or ``mask``."""
    ap: float
    """Mean over IoU .50:.05:.95 and classes."""
    ap50: float
    ap75: float
    small: float
    """AP of objects below 32² px, then from there below 96² px, then the rest."""
    medium: float
    large: float
    recall: float
    """Mean recall at 100 detections a photo."""


@dataclass(frozen=True)
class Dataset:
    """Photos and objects in COCO's layout."""

    photos: Path
    annotations: Path


def locate(data: Path, split: str | None = None) -> Dataset:
    """``annotations/instances_SPLIT.json`` and ``SPLIT/`` below ``data``; val2017 or val where none is named."""
    for name in SPLITS if split is None else (split,):
        annotations = data / "annotations" / f"instances_{name}.json"
        for photos in (data / name, data / "images" / name):
            if annotations.is_file() and photos.is_dir():
                return Dataset(photos, annotations)
    wanted = " or ".join(SPLITS) if split is None else split
    raise DeformscopeError(
        f"{data}: no annotations/instances_SPLIT.json with a folder SPLIT/ for SPLIT = {wanted}; "
        "expected a folder in COCO's layout, or name another split"
    )


def evaluate(
    detector: Detector,
    dataset: Dataset,
    *,
    batch: int = 4,
    max_photos: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Score]:
    """Box AP and, where detector and data have masks, mask AP on the dataset's photos (the first ``max_photos``).

    The detector runs where its weights lie, ``batch`` photos at a time, with a progress bar on stderr; ``settings`` go
    to it (as published: at most 100 detections a photo, score above .05).
    """
    if batch < 1 or (max_photos is not None and max_photos < 1):
        raise DeformscopeError(f"batch={batch}, max_photos={max_photos}: expected at least 1")
    truth = _read(dataset.annotations)
    images = sorted(truth["images"], key=lambda image: image["id"])[:max_photos]
    ids = [image["id"] for image in images]
    categories = {category["name"]: category["id"] for category in truth["categories"]}
    shared = [name for name in detector.class_names if name in categories]
    if not shared or not ids:
        raise DeformscopeError(
            f"{dataset.annotations}: {len(ids)} photos and {len(shared)} classes that {detector.name} knows; "
            f"expected some ({', '.join(list(categories)[:3])}… against {', '.join(detector.class_names[:3])}…)"
        )
    results: list[dict[str, Any]] = []
    with_masks = False
    for part in _batches(images, batch, progress, detector.name):
        photos = [dataset.photos / image["file_name"] for image in part]
        for image, found in zip(part, detector(photos, **settings), strict=True):
            with_masks |= "masks" in found
            results += to_results(found, image["id"], detector.class_names, categories)
    objects = [one for one in truth["annotations"] if one["image_id"] in set(ids)]
    truth |= {"images": images, "annotations": objects}
    scores = [_score("box", truth, results)]
    if with_masks and all(one.get("segmentation") for one in objects):
        scores.append(_score("mask", truth, results))
    return scores


def to_results(
    found: Detection, image: int, class_names: Sequence[str], categories: dict[str, int]
) -> list[dict[str, Any]]:
    """One photo's detections in COCO's results format: xywh boxes, run-length masks, classes that COCO has."""
    results = []
    boxes = found["boxes"].cpu().double()
    boxes[:, 2:] -= boxes[:, :2]
    for index, (box, label, score) in enumerate(
        zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ):
        category = categories.get(class_names[label])
        if category is None:
            continue
        result = {"image_id": image, "category_id": category, "bbox": box, "score": score}
        if "masks" in found:
            result["segmentation"] = run_lengths(found["masks"][index].cpu().numpy())
        results.append(result)
    return results


COLUMNS = ("", "AP", "AP50", "AP75", "small", "medium", "large", "recall")


def rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """A table of scores, a row each under :data:`COLUMNS`; percent with one decimal, a dash where nothing counts."""
    return [
        (
            score.kind,
            *(
                "–" if np.isnan(value) else f"{value:.1f}"
                for value in (score.ap, score.ap50, score.ap75, score.small, score.medium, score.large, score.recall)
            ),
        )
        for score in scores
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        truth = json.loads(path.read_bytes())
        for key, needed in (("images", "file_name"), ("annotations", "bbox"), ("categories", "name")):
            if not all({"id", needed} <= one.keys() for one in truth[key]):
                raise KeyError(needed)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DeformscopeError(f"{path}: no COCO annotations ({type(error).__name__}: {error}); get it again") from None
    return truth


def _batches(images: Sequence[dict], size: int, progress: bool, name: str) -> Iterator[Sequence[dict]]:
    with ProgressBar(name, len(images), shown=progress) as bar:
        for start in range(0, len(images), size):
            yield images[start : start + size]
            bar.advance(min(size, len(images) - start))


def _score(kind: str, truth: dict[str, Any], results: list[dict[str, Any]]) -> Score:
    found = average_precision(truth, results, kind="bbox" if kind == "box" else "segm")
    return Score(kind, *(_number(found[name]) for name in MEASURES))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

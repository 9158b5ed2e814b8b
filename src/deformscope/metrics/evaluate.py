"""Box and mask AP of a detector on a folder in COCO's layout.

Classes are matched by name, so the order of a detector's classes and gaps in COCO's ids do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.coco import CocoDataset
from ..datasets.records import CocoPhoto
from ..datasets.segmentation import run_lengths
from ..datasets.values import Identifier
from ..detectors.detector import Detection, Detector
from ..errors import DeformscopeError
from ..terminal.progress import ProgressBar
from .coco import AREAS, average_precision

MEASURES = ("ap", "ap50", "ap75", *AREAS, "recall")
"""The fields of :class:`Score`, by the names of :func:`average_precision`."""


@dataclass(frozen=True)
class Score:
    """COCO's metrics for boxes or masks, in percent; NaN if there is no object."""

    kind: str
    """``box`` or ``mask``."""
    ap: float
    """Mean over IoU .50:.05:.95 and classes."""
    ap50: float
    ap75: float
    small: float
    """AP of objects below 32² px, from there to 96² px, and larger ones."""
    medium: float
    large: float
    recall: float
    """Mean recall at 100 detections per photo."""
    by_class: Mapping[str, float] = field(default_factory=dict)
    """AP of every evaluated class that has an object."""


def evaluate(
    detector: Detector,
    dataset: CocoDataset,
    *,
    classes: Sequence[str] = (),
    batch: int = 4,
    max_photos: int | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Score]:
    """Box AP and, where detector and data have masks, mask AP on the dataset's photos (the first ``max_photos``).

    Averages are over ``classes``, or over all that have an object; classes that the detector does not know count zero.
    The detector runs where its weights lie, ``batch`` photos at a time, with a progress bar on stderr; ``settings`` go
    to it (as published: at most 100 detections a photo, score above .05).

    Raises DeformscopeError for classes that the dataset or the detector does not know, and when they share none.

    Example:
        >>> from deformscope.datasets.coco import read_coco
        >>> box, *masks = evaluate(detector, read_coco("DATA", "val"), classes=["cat"], progress=False)
        >>> 0 <= box.ap <= 100, list(box.by_class)
        (True, ['cat'])
    """
    if batch < 1 or (max_photos is not None and max_photos < 1):
        raise DeformscopeError(f"batch={batch}, max_photos={max_photos}: expected at least 1")
    photos = dataset.photos[:max_photos]
    categories = {category.name: category.id for category in dataset.categories}
    shared = [name for name in detector.class_names if name in categories]
    if not shared:
        raise DeformscopeError(
            f"{dataset.annotations}: no class that {detector.name} knows; expected some "
            f"({', '.join(list(categories)[:3])}… against {', '.join(detector.class_names[:3])}…)"
        )
    unknown = [name for name in classes if name not in shared]
    if unknown:
        raise DeformscopeError(
            f"classes={list(classes)}: {', '.join(map(repr, unknown))} not both in {dataset.annotations} and known to "
            f"{detector.name}; expected some of {', '.join(shared)}"
        )
    results: list[dict[str, Any]] = []
    with_masks = False
    for part in _batches(photos, batch, progress, detector.name):
        for photo, found in zip(part, detector([photo.path for photo in part], **settings), strict=True):
            with_masks |= "masks" in found
            results += to_results(found, photo.id, detector.class_names, categories)
    truth = dataset.truth(photos)
    scores = [_score("box", truth, results, classes)]
    if with_masks and all("segmentation" in one for one in truth["annotations"]):
        scores.append(_score("mask", truth, results, classes))
    return scores


def to_results(
    found: Detection, image: Identifier, class_names: Sequence[str], categories: Mapping[str, Identifier]
) -> list[dict[str, Any]]:
    """The detections on one photo in COCO's results format: xywh boxes, run-length masks, only classes of the
    dataset."""
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
    """Rows of a table of scores under :data:`COLUMNS`: percent with one decimal, a dash for NaN."""
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


def class_rows(scores: Sequence[Score]) -> list[tuple[str, ...]]:
    """Rows of a table of AP per class: the class, then its AP for every score."""
    names = list(dict.fromkeys(name for score in scores for name in score.by_class))
    return [
        (name, *(f"{score.by_class[name]:.1f}" if name in score.by_class else "–" for score in scores))
        for name in names
    ]


def _batches(photos: Sequence[CocoPhoto], size: int, progress: bool, name: str) -> Iterator[Sequence[CocoPhoto]]:
    with ProgressBar(name, len(photos), shown=progress) as bar:
        for start in range(0, len(photos), size):
            yield photos[start : start + size]
            bar.advance(min(size, len(photos) - start))


def _score(kind: str, truth: dict[str, Any], results: list[dict[str, Any]], classes: Sequence[str]) -> Score:
    found = average_precision(truth, results, classes, "bbox" if kind == "box" else "segm")
    names = [category["name"] for category in truth["categories"] if not classes or category["name"] in classes]
    by_class = {name: value for name in names if (value := found[f"ap/{name}"]) is not None}
    ap, ap50, ap75, small, medium, large, recall = (_number(found[name]) for name in MEASURES)
    return Score(kind, ap, ap50, ap75, small, medium, large, recall, by_class)


def _number(value: float | None) -> float:
    return float("nan") if value is None else value

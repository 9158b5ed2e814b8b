"""COCO's average precision of boxes and masks (Lin et al., ECCV 2014): of results, and of a detector on a folder.

Classes are matched by name, so that the order of a detector's classes and gaps in COCO's ids do not matter.
faster-coco-eval or pycocotools computes AP. Both take an object's id of 0 as "no match" and expect integers as ids, so
they get numbers of our own, and any ids can be used.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..datasets.coco import CocoDataset
from ..datasets.records import CocoPhoto, say
from ..datasets.values import Identifier, checked, decode, flag, number, rank, run_lengths
from ..detectors.detector import Detection, Detector
from ..errors import DeformscopeError
from ..terminal.progress import ProgressBar

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
        if results:
            found = whole.loadRes([{name: one[name] for name in wanted} for one in results])
        else:  # of which loadRes makes an error
            found = coco()
            found.dataset = {**whole.dataset, "annotations": []}
            found.createIndex()
        run = evaluation(whole, found, iouType=kind)
        run.params.imgIds = [image["id"] for image in truth["images"]]
        run.evaluate()
        run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1], np.asarray(run.eval["recall"])[..., -1]


def _numbered(
    truth: Mapping[str, Any], results: Sequence[dict[str, Any]], kind: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Both with ids 1, 2, …, in the order of the images' and of the categories' ids, and with all keys that COCO needs.

    Detections of equal score count in the order of their images' ids, as in pycocotools.
    """
    categories, images = (sorted(truth[key], key=lambda one: rank(one["id"])) for key in ("categories", "images"))
    image_ids = {image["id"]: place for place, image in enumerate(images, 1)}
    category_ids = {category["id"]: place for place, category in enumerate(categories, 1)}
    sizes = {image["id"]: (image.get("height"), image.get("width")) for image in truth["images"]}

    def moved(one: Mapping[str, Any], **values: Any) -> dict[str, Any]:
        ids = {"image_id": image_ids[one["image_id"]], "category_id": category_ids[one["category_id"]]}
        return {**one, **ids, **values}

    def there(one: Mapping[str, Any]) -> bool:
        return one["image_id"] in image_ids and one["category_id"] in category_ids

    annotations = [
        moved(one, id=place, iscrowd=int(flag(one.get("iscrowd")) or False), area=_area(one, sizes[one["image_id"]]))
        for place, one in enumerate(filter(there, truth["annotations"]), 1)
    ]
    if kind == "segm":  # crowds may have no mask; detections in their box are then ignored
        annotations = [
            one if one.get("segmentation") else {**one, "segmentation": _outline(one)} for one in annotations
        ]
    return {
        "images": [{**image, "id": place} for place, image in enumerate(images, 1)],
        "annotations": annotations,
        "categories": [{**category, "id": place} for place, category in enumerate(categories, 1)],
    }, [moved(one) for one in results if there(one)]


def _area(one: Mapping[str, Any], size: tuple[int, int]) -> float:
    """The annotated area, or that of the mask, or of the box, px²."""
    area = number(one.get("area"))
    if area is not None:
        return area
    if one.get("segmentation"):
        return float(decode(checked(one["segmentation"], size), size).sum())
    return float(one["bbox"][2] * one["bbox"][3])


def _outline(one: Mapping[str, Any]) -> list[list[float]]:
    x, y, w, h = one["bbox"]
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def _mean(values: np.ndarray) -> float | None:
    counted = values[values > -1]
    return float(100 * counted.mean()) if counted.size else None


MEASURES = ("ap", "ap50", "ap75", *AREAS, "recall")
"""The fields of :class:`Score`, by the names of :func:`average_precision`."""


SYNONYMS = (
    ("aeroplane", "airplane"),
    ("motorbike", "motorcycle"),
    ("sofa", "couch"),
    ("tvmonitor", "tv", "television"),
    ("hairdrier", "hairdryer"),
    ("donut", "doughnut"),
)
"""Names of the same class in Pascal VOC, COCO and LVIS, without spaces."""


@dataclass(frozen=True)
class Score:
    """COCO's metrics for boxes or masks, in percent; NaN if there is no object.

    Example:
        >>> Score("box", 41.3, 62.0, 45.0, 23.0, 45.0, float("nan"), 55.0).ap50
        62.0
    """

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

    Averages are over ``classes``, or over all that have an object; classes that the detector does not know count zero,
    and those that it knows by another name are matched (:func:`same_classes`). The detector runs where its weights lie,
    ``batch`` photos at a time, with a progress bar on stderr; ``settings`` go to it (as published: at most 100
    detections a photo, score above .05).

    Raises DeformscopeError for classes that the dataset or the detector does not know, and when they share none.

    Example:
        >>> from deformscope.datasets import read_coco
        >>> box, *masks = evaluate(detector, read_coco("DATA", "val"), classes=["cat"], progress=False)
        >>> 0 <= box.ap <= 100, list(box.by_class)
        (True, ['cat'])
    """
    if batch < 1 or (max_photos is not None and max_photos < 1):
        raise DeformscopeError(f"batch={batch}, max_photos={max_photos}: expected at least 1")
    photos = dataset.photos[:max_photos]
    categories = {category.name: category.id for category in dataset.categories}
    names = same_classes(detector.class_names, dataset.names)
    shared = [name for name in names if name in categories]
    classes = [dict(zip(detector.class_names, names, strict=True)).get(name, name) for name in classes]
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
            results += to_results(found, photo.id, names, categories)
    truth = dataset.truth(photos)
    scores = [_score("box", truth, results, classes)]
    if with_masks and all("segmentation" in one for one in truth["annotations"]):
        scores.append(_score("mask", truth, results, classes))
    return scores


def same_classes(known: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """The names ``known`` to a detector, with those of a dataset where it has another one for the same class.

    Names are the same up to case, spaces, underscores and hyphens (``pottedplant``, ``potted plant``), or by
    :data:`SYNONYMS`; only where one name of each side is. A DeformscopeWarning lists them.

    Example:
        >>> same_classes(("cat", "sofa", "pottedplant"), ("potted plant", "couch", "cat"))
        ('cat', 'couch', 'potted plant')
    """
    alike: dict[str, tuple[list[str], list[str]]] = {}
    for side, names, others in ((0, known, set(wanted)), (1, wanted, set(known))):
        for name in names:
            if name not in others:
                alike.setdefault(_meaning(name), ([], []))[side].append(name)
    renamed = {own[0]: other[0] for own, other in alike.values() if len(own) == len(other) == 1}
    if renamed:
        listed = ", ".join(f"{other} ({own})" for own, other in renamed.items())
        say(f"classes that the detector knows by another name: {listed}")
    return tuple(renamed.get(name, name) for name in known)


def _meaning(name: str) -> str:
    plain = re.sub(r"[\s_-]+", "", name).casefold()
    return next((several[0] for several in SYNONYMS if plain in several), plain)


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

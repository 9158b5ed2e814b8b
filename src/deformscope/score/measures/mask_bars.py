"""Masks of one photo, as they match its objects: those that can be made of boxes alone, and the detector's own.

All sources are made of the same detected boxes with the same scores, so that differences are those of the masks alone.
Segments are grown from the offsets without boxes or classes, and are compared without classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from torch import nn

from ...capture.context_managers import capture
from ...detectors.box_masks import ellipse, filled, grab_cut, refined
from ...fields.fields import Fields
from ...fields.segments import segments
from ...fields.stack import DEEPEST, composed, upstream
from ...metrics.matching import IOUS, Matches, iou_of_areas, mask_iou, match
from .annotations import Scene

Array = np.ndarray
Record = dict[str, Any]
BARS = {
    "filled": "filled box",
    "ellipse": "inscribed ellipse",
    "grabcut": "GrabCut in the box",
    "grabcut_ellipse": "GrabCut seeded by the ellipse",
}
OWN = {"masks": "the detector's masks", "grabcut_masks": "GrabCut seeded by the detector's masks"}
BOXES = "boxes"
"""Not masks but the detected boxes against the annotated ones: what masks of them could reach."""
FOUND = 0.5
"""IoU of boxes from which on a detection of its class finds an object."""


def photo_record(
    detector: nn.Module, scene: Scene, *, detections: int, grabcut: bool, bars: Sequence[str], grown: bool
) -> Record:
    """What each source of masks finds on one photo, as plain numbers."""
    fields = Fields({})
    with capture(detector) if grown else nullcontext(fields) as fields:
        found = detector(scene.photo, max_detections=detections)[0]
    found = {key: value.cpu() for key, value in found.items()}
    names = getattr(detector, "class_names", ())
    things = [*scene.counted, *(t for t in scene.things if t.ignored and min(t.size) >= 1)]
    ignored = np.array([thing.ignored for thing in things], dtype=bool)
    masks = [filled(t.box, scene.size) if t.mask is None else t.mask for t in things]
    pixels = scene.size[0] * scene.size[1]
    objects = np.array(masks, dtype=bool).reshape(len(things), pixels)
    classes = [thing.category for thing in things]
    labels = [names[label] for label in found["labels"].tolist()]
    scores = found["scores"].double().numpy()
    boxes = found["boxes"].double().numpy().reshape(-1, 4)
    finder = _finders(boxes, labels, things)
    record: Record = {
        "objects": [name for name, no in zip(classes, ignored, strict=True) if not no],
        "labels": labels,
        "scores": [round(score, 6) for score in scores.tolist()],
        "sources": {},
    }
    counted = len(scene.counted)
    overlap = _box_iou(boxes, np.array([thing.box for thing in things]).reshape(-1, 4), ignored)
    record["sources"][BOXES] = {
        "any": _bits(match(overlap, scores, ignored)),
        "own": _by_class(overlap, scores, labels, classes, ignored),
    }
    for source, made in _sources(scene.photo, boxes, found, grabcut, bars).items():
        overlap = mask_iou(made.reshape(len(boxes), pixels), objects, ignored)
        one: dict[str, Any] = {"any": _bits(match(overlap, scores, ignored))}
        one |= {"own": _by_class(overlap, scores, labels, classes, ignored)}
        one["iou"] = [None if d is None else _short(overlap[d, o]) for o, d in enumerate(finder[:counted])]
        if source in BARS:
            true = _made(source, scene.photo, np.array([t.box for t in scene.counted]).reshape(-1, 4))
            flat = true.reshape(counted, pixels)
            own = objects[:counted]
            one["true_iou"] = [_short((a & b).sum() / max((a | b).sum(), 1)) for a, b in zip(flat, own, strict=True)]
        record["sources"][source] = one
    if grown:
        for layer, (regions, inflow) in _segments(fields, scene.size).items():
            overlap = mask_iou(regions.reshape(len(regions), pixels), objects, ignored)
            matched = match(overlap, inflow, ignored)
            record["sources"][layer] = {"any": _bits(matched), "scores": [_short(s) for s in matched.scores]}
    return record


def _sources(
    photo: Array, boxes: Float[Array, "d 4"], found: Mapping[str, Any], grabcut: bool, bars: Sequence[str]
) -> dict[str, Bool[Array, "d h w"]]:
    wanted = [bar for bar in bars if grabcut or not bar.startswith("grabcut")]
    made = {bar: _made(bar, photo, boxes) for bar in wanted}
    if "masks" in found:
        made["masks"] = found["masks"].numpy().astype(bool)
        if grabcut:
            made["grabcut_masks"] = refined(photo, boxes, made["masks"])
    return made


def _made(bar: str, photo: Array, boxes: Float[Array, "d 4"]) -> Bool[Array, "d h w"]:
    size = photo.shape[:2]
    make: dict[str, Callable[[Any], Array]] = {
        "filled": lambda box: filled(box, size),
        "ellipse": lambda box: ellipse(box, size),
        "grabcut": lambda box: grab_cut(photo, box),
        "grabcut_ellipse": lambda box: grab_cut(photo, box, ellipse(box, size)),
    }
    return np.array([make[bar](box) for box in boxes.tolist()], dtype=bool).reshape(len(boxes), *size)


def _segments(fields: Fields, size: tuple[int, int]) -> dict[str, tuple[Array, Array]]:
    """Masks and scores of the regions of each field, with those below it; by ``segments NAME``."""
    found = {}
    for name, field in fields.items():
        if field.offset.shape[0] != 1:
            continue
        regions = segments(composed(upstream(fields, name, DEEPEST)))
        found[f"segments {name}"] = regions.masks.reshape(len(regions.scores), *size), regions.scores
    return found


def _finders(boxes: Float[Array, "d 4"], labels: Sequence[str], things: Sequence[Any]) -> list[int | None]:
    """Of each object, the detection of its class whose box overlaps it most, by at least :data:`FOUND`."""
    found: list[int | None] = []
    for thing in things:
        own = np.flatnonzero(np.array([label == thing.category for label in labels], dtype=bool))
        overlap = _box_iou(boxes[own], np.array(thing.box)[None], np.zeros(1, dtype=bool))[:, 0]
        found.append(int(own[overlap.argmax()]) if len(own) and overlap.max() >= FOUND else None)
    return found


def _box_iou(boxes: Float[Array, "d 4"], objects: Float[Array, "m 4"], ignored: Bool[Array, " m"]) -> Array:
    """IoU of boxes; with ignored ones, the share of the box that is covered."""
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    areas = [(several[:, 2:] - several[:, :2]).prod(axis=1) for several in (boxes, objects)]
    return iou_of_areas((high - low).clip(min=0).prod(axis=2), areas[0], areas[1], ignored)


def _by_class(
    overlap: Array, scores: Array, labels: Sequence[str], classes: Sequence[str], ignored: Array
) -> list[list[int]]:
    """The bits of each detection, in order, matched with the objects of its class."""
    hit, skipped = [0] * len(labels), [0] * len(labels)
    for name in set(labels):
        rows = [i for i, label in enumerate(labels) if label == name]
        columns = [i for i, other in enumerate(classes) if other == name]
        bits = _bits(match(overlap[np.ix_(rows, columns)], scores[rows], ignored[columns]))
        # Detections come best first, so those of a class are in the order of its matches.
        for row, one, other in zip(rows, *bits, strict=True):
            hit[row], skipped[row] = one, other
    return [hit, skipped]


def _bits(matched: Matches) -> list[list[int]]:
    powers = 2 ** np.arange(len(IOUS))
    return [(powers @ matched.hit).tolist(), (powers @ matched.skipped).tolist()]


def _short(value: float) -> float:
    return float(f"{float(value):.5g}")

"""How good are masks, next to masks that need no training: filled boxes, ellipses, GrabCut, and segments of offsets.

All sources are made of the same detected boxes with the same scores, so that differences are those of the masks alone.
Segments are grown from the offsets without boxes or classes, and are compared without classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray as Array
from torch import nn

from ..datasets.coco import Broken
from ..datasets.records import say
from ..detectors.box_masks import ellipse, filled, grab_cut, opencv, refined
from ..errors import DeformscopeError
from ..fields.fields import Fields
from ..fields.segments import segments
from ..fields.stack import DEEPEST, composed, upstream
from ..files import write_json, write_text
from ..metrics.coco import same_classes
from ..metrics.matching import iou_of_areas, mask_iou, match
from ..recording.capture import capture
from .mask_scores import BARS, BOXES, MaskRecord, MaskScores, Source, read_mask_records, summarise_masks
from .records import Bits, bits, short
from .runner import NAMES_ONLY, appending, claimed, describe
from .scenes import Photos, Scene, open_folder

RECORDS, NUMBERS, TABLE = "masks.jsonl", "masks.json", "masks.md"
FOUND = 0.5
"""IoU of boxes from which on a detection of its class finds an object."""


@dataclass(frozen=True)
class MaskSettings:
    """Settings of a run of :func:`measure_masks`.

    Example:
        >>> MaskSettings(max_photos=60, grabcut=False).split
        'val'
    """

    split: str = "val"
    max_photos: int | None = None
    """Number of photos with masks, drawn at random by ``seed``; all if None."""
    classes: tuple[str, ...] = ()
    """Classes to average over; all that the detector knows and that have objects if empty."""
    detections: int = 10
    """Best detections of a photo. More cost time and, of the packaged detector on Pascal VOC, gained no box AP."""
    grabcut: bool = True
    """Also measure GrabCut, which takes most of the time and needs OpenCV."""
    bars: tuple[str, ...] = tuple(BARS)
    """The masks of boxes alone that are measured; those by GrabCut only with ``grabcut``."""
    segments: bool = True
    """Also measure the segments that are grown from each layer's offsets, both stacked layers composed."""
    seed: int = 0
    draws: int = 300
    """Bootstrap samples of the photos."""
    broken: Broken = "refuse"


def measure_masks(
    detector: nn.Module,
    data: Path | str | Photos,
    out: Path | str,
    settings: MaskSettings | None = None,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> MaskScores:
    """Measure the masks that can be made of a detector's boxes, and its own, on the photos that have masks.

    Writes ``masks.jsonl`` (a record a photo, from which an interrupted run resumes), ``masks.json`` and ``masks.md`` to
    ``out``. Raises DeformscopeError before anything is measured: without masks, OpenCV or a common class, and where
    ``out`` holds other masks.

    Example:
        >>> quick = MaskSettings(max_photos=2, grabcut=False, segments=False, draws=40)
        >>> scores = measure_masks(detector, "DATA", "MASKS", quick)
        >>> [row.source for row in scores.rows]
        ['boxes', 'filled', 'ellipse']
    """
    chosen = settings or MaskSettings()
    photos = masked(data, chosen)
    names = same_classes(getattr(detector, "class_names", ()), photos.names)
    shared = [name for name in photos.names if name in names]
    unknown = [name for name in chosen.classes if name not in shared]
    if unknown or not shared:
        wrong = f"{', '.join(map(repr, unknown))} not" if unknown else "none"
        raise DeformscopeError(
            f"classes={list(chosen.classes)}: {wrong} known to both data and detector; "
            f"expected some of {', '.join(shared) or 'the same classes'}"
        )
    kind: dict[str, Any] = {"detections": chosen.detections, "grabcut": chosen.grabcut, "segments": chosen.segments}
    kind |= {} if set(chosen.bars) == set(BARS) else {"bars": list(chosen.bars)}
    run = describe(detector, replace(photos, images=()), kind | {"seed": chosen.seed})
    with claimed(Path(out)):
        records = list(_records(detector, names, photos, Path(out), _digest(run), chosen, progress))
    scores = summarise_masks(records, chosen.classes or shared, f"{run['detector']} on {run['data']}", chosen.draws)
    write_json(Path(out) / NUMBERS, scores.to_json())
    write_text(Path(out) / TABLE, scores.to_markdown())
    return scores


def read_masks(folder: Path | str) -> MaskScores:
    """The scores of finished masks, from their folder alone.

    Raises DeformscopeError where the folder holds none.

    Example:
        >>> read_masks("MASKS").rows[0].source
        'boxes'
    """
    path = Path(folder) / NUMBERS
    try:
        return MaskScores.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeformscopeError(
            f"{path}: no scores of masks ({type(error).__name__}: {error}); measure masks into that folder again"
        ) from None


def masked(data: Path | str | Photos, settings: MaskSettings) -> Photos:
    """The photos whose objects all have masks. Raises DeformscopeError for want of them, or of OpenCV."""
    if settings.grabcut:
        opencv()
    photos = open_folder(data, settings.split, settings.seed, settings.broken)
    images = [image for image in photos.images if any(not one.ignored for one in image.objects)]
    images = [i for i in images if all(one.ignored or one.segmentation is not None for one in i.objects)]
    if not images:
        raise DeformscopeError(f"{photos.annotations}: no photo whose objects all have masks; expected segmentations")
    return replace(photos, images=tuple(images[: settings.max_photos]))


def _digest(run: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in run.items() if key not in ("deformscope", "detector", *NAMES_ONLY)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _records(
    detector: nn.Module,
    names: Sequence[str],
    photos: Photos,
    folder: Path,
    digest: str,
    settings: MaskSettings,
    progress: Callable[..., None],
) -> Iterator[MaskRecord]:
    path = folder / RECORDS
    known = {record.image: record for record in read_mask_records(path)}
    if any(record.run != digest for record in known.values()):
        raise DeformscopeError(f"out={folder}: holds the masks of another run; give another folder")
    with appending(path) as file:
        for index, image in enumerate(photos.images):
            record = known.get(image.id)
            if record is None:
                scene = photos.scene_or_reason(index)
                if isinstance(scene, str):
                    say(f"{scene}; its masks are not measured")
                else:
                    record = replace(_record(detector, names, scene, settings), image=image.id, run=digest)
                    file.write(record.line())
                    file.flush()
            progress(index + 1, len(photos.images))
            if record is not None:
                yield record


def _record(detector: nn.Module, names: Sequence[str], scene: Scene, settings: MaskSettings) -> MaskRecord:
    """What each source of masks finds on one photo."""
    fields = Fields({})
    with capture(detector) if settings.segments else nullcontext(fields) as fields:
        found = detector(scene.photo, max_detections=settings.detections)[0]
    found = {key: value.cpu() for key, value in found.items()}
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
    counted = len(scene.counted)

    def compared(overlap: Array) -> tuple[Bits, Bits]:
        return bits(match(overlap, scores, ignored)), _by_class(overlap, scores, labels, classes, ignored)

    corners = np.array([thing.box for thing in things]).reshape(-1, 4)
    sources = {BOXES: Source(*compared(_box_iou(boxes, corners, ignored)))}
    for source, made in _sources(scene.photo, boxes, found, settings).items():
        overlap = mask_iou(made.reshape(len(boxes), pixels), objects, ignored)
        iou = tuple(None if d is None else short(overlap[d, o]) for o, d in enumerate(finder[:counted]))
        true: tuple[float, ...] = ()
        if source in BARS:
            flat = _made(source, scene.photo, corners[:counted]).reshape(counted, pixels)
            true = tuple(
                short((a & b).sum() / max((a | b).sum(), 1)) for a, b in zip(flat, objects[:counted], strict=True)
            )
        sources[source] = Source(*compared(overlap), iou, true)
    if settings.segments:
        for layer, (regions, inflow) in _segments(fields, scene.size).items():
            matched = match(mask_iou(regions.reshape(len(regions), pixels), objects, ignored), inflow, ignored)
            sources[layer] = Source(bits(matched), scores=tuple(short(s) for s in matched.scores))
    rounded = tuple(round(score, 6) for score in scores.tolist())
    return MaskRecord("", "", tuple(classes[:counted]), tuple(labels), rounded, sources)


def _sources(
    photo: Array, boxes: Float[Array, "d 4"], found: Mapping[str, Any], settings: MaskSettings
) -> dict[str, Bool[Array, "d h w"]]:
    wanted = [bar for bar in settings.bars if settings.grabcut or not bar.startswith("grabcut")]
    made = {bar: _made(bar, photo, boxes) for bar in wanted}
    if "masks" in found:
        made["masks"] = found["masks"].numpy().astype(bool)
        if settings.grabcut:
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


def _by_class(overlap: Array, scores: Array, labels: Sequence[str], classes: Sequence[str], ignored: Array) -> Bits:
    """The bits of each detection, in order, matched with the objects of its class."""
    hit, skipped = [0] * len(labels), [0] * len(labels)
    for name in set(labels):
        rows = [i for i, label in enumerate(labels) if label == name]
        columns = [i for i, other in enumerate(classes) if other == name]
        own = bits(match(overlap[np.ix_(rows, columns)], scores[rows], ignored[columns]))
        # Detections come best first, so those of a class are in the order of its matches.
        for row, one, other in zip(rows, *own, strict=True):
            hit[row], skipped[row] = one, other
    return tuple(hit), tuple(skipped)

"""How good are masks, next to masks that need no training: filled boxes, ellipses, GrabCut, and segments of offsets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..datasets.coco import Broken
from ..detectors.box_masks import opencv
from ..errors import DeformscopeError
from ..files import write_json, write_text
from .measures.annotations import Photos, open_folder
from .measures.mask_bars import BARS, Record, photo_record
from .run_folder import appending, describe
from .summary.masks import MaskScores, summarise_masks

RECORDS, NUMBERS, TABLE = "masks.jsonl", "masks.json", "masks.md"


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
    data: Path | str,
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
    photos = _photos(Path(data), chosen)
    names = tuple(getattr(detector, "class_names", ()))
    shared = [name for name in photos.names if name in names]
    unknown = [name for name in chosen.classes if name not in shared]
    if unknown or not shared:
        wrong = f"{', '.join(map(repr, unknown))} not" if unknown else "none"
        raise DeformscopeError(
            f"classes={list(chosen.classes)}: {wrong} known to both data and detector; "
            f"expected some of {', '.join(shared) or 'the same classes'}"
        )
    kind: dict[str, Any] = {"detections": chosen.detections, "grabcut": chosen.grabcut, "segments": chosen.segments}
    # Only of other bars than all, so that folders of earlier versions can be resumed.
    kind |= {} if set(chosen.bars) == set(BARS) else {"bars": list(chosen.bars)}
    run = describe(detector, replace(photos, images=()), kind | {"seed": chosen.seed})
    records = list(_records(detector, photos, Path(out), _digest(run), chosen, progress))
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


def check_masks(data: Path | str, settings: MaskSettings) -> None:
    """Raise DeformscopeError where :func:`measure_masks` would, for want of OpenCV or of masks."""
    _photos(Path(data), settings)


def _photos(data: Path, settings: MaskSettings) -> Photos:
    """The photos whose objects all have masks."""
    if settings.grabcut:
        opencv()
    photos = open_folder(data, settings.split, settings.seed, settings.broken)
    masked = [image for image in photos.images if any(not one.ignored for one in image.objects)]
    masked = [i for i in masked if all(one.ignored or one.segmentation is not None for one in i.objects)]
    if not masked:
        raise DeformscopeError(f"{photos.annotations}: no photo whose objects all have masks; expected segmentations")
    return replace(photos, images=tuple(masked[: settings.max_photos]))


def _digest(run: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in run.items() if key not in ("deformscope", "detector", "weights_sha256")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _records(
    detector: nn.Module,
    photos: Photos,
    folder: Path,
    digest: str,
    settings: MaskSettings,
    progress: Callable[..., None],
) -> Iterator[Record]:
    folder.mkdir(parents=True, exist_ok=True)
    path, known = folder / RECORDS, {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                known[record["image"]] = record
            except (ValueError, KeyError, TypeError):
                continue  # cut off when a run was killed
        if any(record.get("run") != digest for record in known.values()):
            raise DeformscopeError(f"out={folder}: holds the masks of another run; give another folder")
    with appending(path) as file:
        for index, image in enumerate(photos.images):
            record = known.get(image.id)
            if record is None:
                scene = photos.scene(index)
                record = {"image": image.id, "run": digest} | photo_record(
                    detector,
                    scene,
                    detections=settings.detections,
                    grabcut=settings.grabcut,
                    bars=settings.bars,
                    grown=settings.segments,
                )
                file.write(json.dumps(record) + "\n")
                file.flush()
            progress(index + 1, len(photos.images))
            yield record

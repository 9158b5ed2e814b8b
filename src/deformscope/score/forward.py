"""The forward passes of a run: a detector and its fresh copy on photos and on crops of them.

Freshly drawn offset convolutions react to what a photo shows, and so the copy is run. Freshly initialised attention
looks the same way whatever it sees, and is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from ..analysis import Analysis
from ..errors import DeformscopeError
from .measures.annotations import Photos, Scene, off_centre
from .measures.compare import Task
from .measures.inference import Maps, Seen, look, probe
from .measures.nulls import fresh_copy
from .summary.columns import Record

NEIGHBOURS = 8
"""Number of photos tried in turn for the offsets of another photo."""


class ForwardPasses:
    """Runs a detector, and a copy of it with fresh offset convolutions, on photos.

    ``layers`` are patterns of names, none: all; ``composed`` takes each layer together with up to two below it.
    """

    def __init__(
        self,
        detector: nn.Module,
        photos: Photos,
        *,
        layers: Sequence[str] = (),
        crops: bool = True,
        composed: bool = False,
        seed: int = 0,
    ) -> None:
        self.detector, self.photos = detector, photos
        self.layers, self.crops, self.composed = layers, crops, composed
        made = probe(detector, layers, together=composed)
        self.others = made.others
        self.fresh = fresh_copy(detector, made.convolutions, seed) if made.convolutions else None
        self.seen: dict[int, Seen | None] = {}

    def of_photo(self, index: int, scene: Scene | str) -> tuple[Record, dict[str, Task], Analysis | None]:
        """The incomplete record of a photo, the task to be measured for each of its views, and its fields.

        ``scene`` comes from :func:`read_scene`. If a photo cannot be measured, its record gives the reason.
        """
        image = self.photos.images[index]
        record: Record = {"index": index, "image": image.id, "file": image.file_name, "status": "scored"}
        if isinstance(scene, str):
            return record | {"status": "photo not readable", "note": scene}, {}, None
        if not scene.counted:
            return record | {"status": "no object", "note": "no object that counts is annotated"}, {}, None
        tasks: dict[str, Task] = {}
        analysis = None
        try:
            views = {"whole": scene, "crop": off_centre(scene) if self.crops else None}
            for view, one in views.items():
                if one is None or not one.counted:
                    continue
                seen = self._look(self.detector, one, fresh=True)
                fresh = self._redrawn(one) | seen.fresh
                # Workers and later photos need only the maps.
                seen, whole = replace(seen, analysis=None, fresh={}), seen.analysis
                if view == "whole":
                    analysis = whole
                    self.seen = {k: v for k, v in self.seen.items() if k > index - NEIGHBOURS} | {index: seen}
                    if seen.broken:
                        record["broken"] = list(seen.broken)
                # Only the photo's size is needed from here on, so a broadcast pixel is passed to the worker.
                blank = np.broadcast_to(np.zeros(1, dtype=np.uint8), one.photo.shape)
                tasks[view] = Task(replace(one, photo=blank), seen, fresh, self._other(index), index)
        except DeformscopeError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:200]
            return record | {"status": "detector failed", "note": f"{type(error).__name__}: {reason}"}, {}, None
        if not any(task.field.maps for task in tasks.values()):
            return record | {"status": "offsets not finite", "note": ", ".join(record.get("broken", []))}, {}, None
        return record, tasks, analysis

    def _look(self, detector: nn.Module, scene: Scene, fresh: bool = False) -> Seen:
        return look(detector, scene.photo, self.layers, together=self.composed, fresh=fresh)

    def _redrawn(self, scene: Scene) -> Maps:
        """The maps of those layers of the copy whose offsets are made by fresh convolutions."""
        if self.fresh is None:
            return {}
        maps = self._look(self.fresh, scene).maps
        return {key: one for key, one in maps.items() if key.partition(":")[0] not in self.others}

    def _other(self, index: int) -> Maps:
        """The maps of the photo before this one (of the first, after), or of the nearest that has any."""
        for distance in range(1, NEIGHBOURS):
            other = index - distance if index >= distance else distance
            if other == index or other >= len(self.photos.images):
                continue
            if other not in self.seen:
                scene = read_scene(self.photos, other)
                try:
                    seen = None if isinstance(scene, str) else self._look(self.detector, scene)
                    self.seen[other] = None if seen is None else replace(seen, analysis=None)
                except (RuntimeError, ValueError, IndexError):
                    self.seen[other] = None
            seen = self.seen[other]
            if seen is not None and seen.maps:
                return seen.maps
        return {}


def read_scene(photos: Photos, index: int) -> Scene | str:
    """A photo and its objects, or the reason why it cannot be read."""
    try:
        return photos.scene(index)
    except DeformscopeError as error:
        return str(error)

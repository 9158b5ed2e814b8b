"""A frozen trunk's maps of prepared views, kept on disk: nine tenths of a step's work are then done once.

Half precision; one file a level, read through the operating system's page cache, so that several processes share it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..detectors.one_stage import OneStageDetector
from ..errors import DeformscopeError
from .augment import view
from .networks import Preparation
from .order import Slot
from .recipe import Data
from .sample import Item, Prepare, Source, collate, prepared

VERSION = 1
BATCH = 16
INDEX = "index.pt"
"""The objects of every view, and the levels in the trunk's order."""


class CachedMaps(Dataset[Item]):
    """Every photo in every view once, as the trunk's maps; item ``photo + photos · view``."""

    def __init__(self, folder: Path) -> None:
        kept = torch.load(folder / INDEX, weights_only=True)
        self._objects: list[dict[str, torch.Tensor]] = kept["objects"]
        self._maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in kept["levels"]}

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, slot: Slot) -> Item:
        maps = {name: torch.from_numpy(values[slot.index].copy()) for name, values in self._maps.items()}
        return Item(self._objects[slot.index], maps=maps)


class Views(Dataset[Item]):
    """What is cached: the views themselves, prepared for the network; seeded by their place."""

    def __init__(self, source: Source, data: Data, prepare: Prepare) -> None:
        self.source, self.data, self.prepare = source, data, prepare

    def __len__(self) -> int:
        return len(self.source) * len(self.data.views)

    def __getitem__(self, place: int) -> Item:
        kind, index = divmod(place, len(self.source))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(place)
            sample = view(self.source, index, self.data.views[kind], self.data.canvas, self.data.flip)
            return prepared(sample, self.prepare, masks=False)


def cached(detector: Any, source: Source, data: Data, workers: int | None = None) -> Path:
    """The folder with the maps of this trunk, these photos and these views; made if it is not there (with a bar).

    Raises DeformscopeError when the network has no frozen trunk, or changes the views' size.
    """
    if not isinstance(detector, OneStageDetector) or any(p.requires_grad for p in detector.trunk.parameters()):
        raise DeformscopeError(f"data.cache: {detector.name} has no frozen trunk to cache; set it to null")
    assert data.cache is not None
    folder = Path(data.cache).expanduser() / f"maps-{_digest(detector, source, data)}"
    if not folder.is_dir():
        _make(detector, source, data, folder, workers)
    return folder


def _make(detector: OneStageDetector, source: Source, data: Data, folder: Path, workers: int | None) -> None:
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    beside.mkdir(parents=True, exist_ok=True)
    views = Views(source, data, Preparation(detector))
    device = next(detector.parameters()).device
    files: dict[str, Any] = {}
    objects: list[dict[str, torch.Tensor]] = []
    try:
        for start, items in _parts(views, (os.cpu_count() or 1) // 2 if workers is None else workers):
            batch = collate(items).to(device)
            # Copied, since what a worker made holds a file descriptor open, and a process may have too few of these.
            objects += [{key: value.clone() for key, value in item.target.items()} for item in items]
            assert batch.images is not None
            if tuple(batch.images.shape[2:]) != data.canvas:
                raise DeformscopeError(
                    f"data.canvas: {data.canvas}; the network makes {tuple(batch.images.shape[2:])} of it, "
                    "expected a canvas that fits its own sides"
                )
            with torch.inference_mode():
                maps = detector.trunk(batch.images.to(memory_format=torch.channels_last))
            for name, values in maps.items():
                if name not in files:
                    shape = (len(views), *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(beside / f"{name}.npy", "w+", np.float16, shape)
                files[name][start : start + len(values)] = values.half().cpu().numpy()
        for values in files.values():
            values.flush()
        torch.save({"objects": objects, "levels": list(files)}, beside / INDEX)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _parts(views: Views, workers: int) -> Iterator[tuple[int, list[Item]]]:
    from rich.console import Console
    from rich.progress import track

    loader = DataLoader(views, BATCH, num_workers=workers, collate_fn=list)
    console = Console(stderr=True)
    parts = track(loader, "the trunk's maps", console=console, disable=not console.is_terminal, total=len(loader))
    for number, items in enumerate(parts):
        yield number * BATCH, items


def _digest(detector: OneStageDetector, source: Source, data: Data) -> str:
    """Of all that the maps depend on."""
    digest = hashlib.sha256(f"{VERSION} {source.identity} {data.views} {data.canvas} {data.flip}".encode())
    for name, value in detector.trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

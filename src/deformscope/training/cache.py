"""Cached feature maps of a frozen trunk for prepared views, which saves nine tenths of the work of a step.

Half precision, one file per level, read through the operating system's page cache, so that processes share it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..datasets.values import mask_library, run_lengths
from ..detectors.detector import TrainableDetector
from ..errors import DeformscopeError
from ..files import whole_folder
from ..terminal.progress import track
from .augment import view
from .order import Slot
from .recipe import Data
from .sources import Item, Prepare, Source, collate, prepared

VERSION = 1
BATCH = 16
MASKS = "masks.pt"
INDEX = "index.pt"
"""File with the objects of every view, and the levels in the trunk's order."""


class CachedMaps(Dataset[Item]):
    """The trunk's feature maps of every photo in every view; item ``photo + photos · view``.

    ``masks`` is the file of the views' objects with masks, for detectors that learn from them.
    """

    def __init__(self, folder: Path, masks: Path | None = None) -> None:
        kept = torch.load(folder / INDEX, weights_only=True)
        self._objects: list[dict[str, torch.Tensor]] = kept["objects"]
        if masks is not None:
            self._objects = torch.load(masks, weights_only=True)
        self._maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in kept["levels"]}

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, slot: Slot) -> Item:
        maps = {name: torch.from_numpy(values[slot.index].copy()) for name, values in self._maps.items()}
        return Item(_unpacked(self._objects[slot.index]), maps=maps)


class Views(Dataset[Item]):
    """The views to be cached, prepared for the network; each is seeded by its index."""

    def __init__(self, source: Source, data: Data, prepare: Prepare, masks: bool = False) -> None:
        self.source, self.data, self.prepare, self.masks = source, data, prepare, masks

    def __len__(self) -> int:
        return len(self.source) * len(self.data.views)

    def __getitem__(self, place: int) -> Item:
        kind, index = divmod(place, len(self.source))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(place)
            sample = view(self.source, index, self.data.views[kind], self.data.canvas, self.data.flip)
            return prepared(sample, self.prepare, masks=self.masks)


def cached(detector: TrainableDetector, source: Source, data: Data, workers: int | None = None) -> Path:
    """The folder with the feature maps of this trunk for these photos and views; created, with a bar, if it is not
    there.

    Raises DeformscopeError when the network has no frozen trunk, or changes the size of the views.
    """
    trunk = detector.frozen_trunk
    if trunk is None or any(p.requires_grad for p in trunk.parameters()):
        raise DeformscopeError(f"data.cache: {detector.name} has no frozen trunk to cache; set it to null")
    assert data.cache is not None
    folder = Path(data.cache).expanduser() / f"maps-{_digest(trunk, source, data, detector.has_masks)}"
    if not folder.is_dir():
        _make(detector, trunk, source, data, folder, workers)
    return folder


def cached_masks(detector: TrainableDetector, source: Source, data: Data, workers: int | None = None) -> Path:
    """The file with the objects of the same views and their masks, for ``data.mask_targets``; created, with a bar, if
    it is not there."""
    assert data.cache is not None and detector.frozen_trunk is not None
    digest = _digest(detector.frozen_trunk, source, data, detector.has_masks)
    folder = Path(data.cache).expanduser() / f"masks-{digest}-{data.mask_targets}"
    if not folder.is_dir():
        views = Views(source, data, detector.prepare, masks=True)
        with whole_folder(folder) as beside:
            objects = _Objects(beside)
            for _, items in _parts(views, workers, "masks"):
                objects.add(items)
            torch.save(objects.all(), beside / MASKS)
    return folder / MASKS


def _make(
    detector: TrainableDetector, trunk: nn.Module, source: Source, data: Data, folder: Path, workers: int | None
) -> None:
    views = Views(source, data, detector.prepare, detector.has_masks)
    device = next(detector.parameters()).device
    files: dict[str, Any] = {}
    with whole_folder(folder) as beside:
        objects = _Objects(beside)
        for start, items in _parts(views, workers):
            batch = collate(items).to(device)
            objects.add(items)
            assert batch.images is not None
            if tuple(batch.images.shape[2:]) != data.canvas:
                raise DeformscopeError(
                    f"data.canvas: {data.canvas}; the network makes {tuple(batch.images.shape[2:])} of it, "
                    "expected a canvas that fits its own sides"
                )
            with torch.inference_mode():
                maps = trunk(batch.images.to(memory_format=torch.channels_last))
            for name, values in maps.items():
                if name not in files:
                    shape = (len(views), *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(beside / f"{name}.npy", "w+", np.float16, shape)
                files[name][start : start + len(values)] = values.half().cpu().numpy()
        for values in files.values():
            values.flush()
        torch.save({"objects": objects.all(), "levels": list(files)}, beside / INDEX)


class _Objects:
    """The objects of the views so far, in a file without a name.

    Kept in memory, these small tensors would lie between the large ones of the batches, and glibc's malloc would find
    no room for the next batch where the previous one was: its heap grew by a batch of photos each time.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._batches = tempfile.TemporaryFile(dir=folder), 0  # noqa: SIM115

    def add(self, items: list[Item]) -> None:
        pickle.dump([_packed(item.target) for item in items], self._file)
        self._batches += 1

    def all(self) -> list[dict[str, torch.Tensor]]:
        self._file.seek(0)
        with self._file:
            return [kept for _ in range(self._batches) for kept in pickle.load(self._file)]


def _parts(views: Views, workers: int | None, label: str = "the trunk's maps") -> Iterator[tuple[int, list[Item]]]:
    workers = (os.cpu_count() or 1) // 2 if workers is None else workers
    loader = DataLoader(views, BATCH, num_workers=workers, collate_fn=list)
    for number, items in enumerate(track(loader, label, len(loader))):
        yield number * BATCH, items


def _digest(trunk: nn.Module, source: Source, data: Data, masks: bool) -> str:
    """A digest of everything on which the maps depend."""
    digest = hashlib.sha256(f"{VERSION} {source.identity} {data.views} {data.canvas} {data.flip}".encode())
    if masks:
        digest.update(f"masks{data.mask_targets or ''}".encode())
    for name, value in trunk.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _packed(target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The objects of a view as they are saved: masks as COCO's run lengths, which take a hundredth of the space."""
    # Copied, since a tensor from a worker keeps a file descriptor open, and a process may run out of these.
    kept = {key: value.clone() for key, value in target.items() if key != "masks"}
    if "masks" in target:
        runs = [run_lengths(mask.numpy())["counts"].encode() for mask in target["masks"]]
        kept["mask_runs"] = torch.tensor(list(b"".join(runs)), dtype=torch.uint8)
        kept["mask_lengths"] = torch.tensor([len(run) for run in runs], dtype=torch.int64)
        kept["mask_size"] = torch.tensor(target["masks"].shape[1:])
    return kept


def _unpacked(kept: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reverse of :func:`_packed`."""
    target = {key: value for key, value in kept.items() if not key.startswith("mask_")}
    if "mask_runs" in kept:
        size = kept["mask_size"].tolist()
        runs = kept["mask_runs"].split(kept["mask_lengths"].tolist())
        codes = [{"size": size, "counts": run.numpy().tobytes()} for run in runs]
        masks = [torch.from_numpy(mask_library().decode(code)).bool() for code in codes]
        target["masks"] = torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)
    return target

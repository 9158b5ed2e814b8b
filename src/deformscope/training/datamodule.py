"""A recipe's data for Lightning: sources, training items by slot, validation photos by index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..detectors.detector import Batch, TrainableDetector
from ..errors import DeformscopeError
from .augment import integer, pasted, uniform, view
from .cache import CachedMaps, cached, cached_masks
from .order import Order, Slot, Steps, aspect_groups
from .recipe import Recipe
from .shapes import ShapesSet
from .sources import CocoFolder, Item, MadeOfBoxes, Prepare, Source, collate, prepared

AT_ONCE = 8
"""Photos per batch in evaluation."""


def source(recipe: Recipe, split: str) -> Source:
    """The photos of ``train`` or ``val``. Raises DeformscopeError when their annotations are broken."""
    data = recipe.data
    made = split == "train" and data.mask_targets == "grabcut"
    if data.folder is None:
        drawn = ShapesSet(data.shapes, split)
        return MadeOfBoxes(drawn) if made else drawn
    learned = recipe.learns_masks if split == "train" else recipe.network.has_masks
    masks = (learned or (split == "train" and data.copy_paste > 0)) and not made
    photos = CocoFolder(
        Path(data.folder).expanduser(),
        getattr(data, split),
        masks=masks,
        broken=data.broken,
        # photos without objects show false alarms in validation
        empty=data.empty if split == "train" else "keep",
    )
    return MadeOfBoxes(photos) if made else photos


@dataclass
class SeededItems(Dataset[Item]):
    """Augmented and prepared photos. The slot decides all random draws, whichever process makes them."""

    source: Source
    recipe: Recipe
    prepare: Prepare

    def __getitem__(self, slot: Slot) -> Item:
        data = self.recipe.data
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(slot.seed(self.recipe.run.seed))
            kind = data.views[integer(0, len(data.views))]
            sample = view(self.source, slot.index, kind, data.canvas, data.flip)
            if data.copy_paste and uniform(0, 1) < data.copy_paste:
                sample = pasted(sample, self.source.load(integer(0, len(self.source))))
            sides = data.shorter_sides
            side = sides[integer(0, len(sides))] if sides else None
            return prepared(sample, self.prepare, side, masks=self.recipe.learns_masks)


@dataclass
class Photos(Dataset[tuple[int, np.ndarray]]):
    """Photos by index, unchanged, for evaluation."""

    source: Source

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, self.source.load(index).image.permute(1, 2, 0).contiguous().numpy()


class RecipeData(lightning.LightningDataModule):
    """Training batches from the trainer's step on, and validation photos, distributed over the processes."""

    def __init__(self, recipe: Recipe, detector: TrainableDetector, train: Source, val: Source) -> None:
        super().__init__()
        self.recipe, self.detector, self.train_source, self.val_source = recipe, detector, train, val
        self._items: Dataset[Item] | None = None
        groups = aspect_groups(train.sizes) if recipe.data.group_by_aspect else [0] * len(train)
        if recipe.data.cache is not None:  # each view of a photo is an item, and all have one size
            groups = [0] * (len(train) * len(recipe.data.views))
        self.order = Order(groups, recipe.data.batch, recipe.run.seed)

    def prepare_data(self) -> None:
        """Make the cache of feature maps, in one process per machine."""
        if self.recipe.data.cache is not None:
            self._cached()

    def _cached(self) -> tuple[Path, Path | None]:
        """The cache's files of maps and of masks, made where they are not there."""
        given = self.detector, self.train_source, self.recipe.data
        maps = cached(*given)
        learned = self.recipe.data.mask_targets is not None and not self.detector.has_masks
        return maps, cached_masks(*given) if learned else None

    def train_dataloader(self) -> DataLoader[Item]:
        """The batches up to the next checkpoint."""
        trainer, run, data = self.trainer, self.recipe.run, self.recipe.data
        assert trainer is not None
        if self._items is None:
            if data.cache is not None:
                self._items = CachedMaps(*self._cached())
            else:
                self._items = SeededItems(self.train_source, self.recipe, self.detector.prepare)
        first = trainer.global_step
        last = min(run.steps, first - first % run.checkpoint_every + run.checkpoint_every)
        steps = Steps(self.order, first, max(last, first), trainer.global_rank, trainer.world_size)
        return self._loader(self._items, steps)

    def val_dataloader(self) -> DataLoader[Any]:
        """The photos to evaluate, every ``world_size``-th for each process."""
        trainer = self.trainer
        assert trainer is not None
        indices = evaluated(self.recipe, self.val_source)[trainer.global_rank :: trainer.world_size]
        batches = [indices[i : i + AT_ONCE] for i in range(0, len(indices), AT_ONCE)]
        return DataLoader(
            Photos(self.val_source), batch_sampler=batches, num_workers=self.recipe.data.workers, collate_fn=list
        )

    def _loader(self, items: Dataset[Item], steps: Steps) -> DataLoader[Item]:
        workers = self.recipe.data.workers
        return DataLoader(
            items,
            batch_sampler=steps,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available() and self.recipe.run.accelerator != "cpu",
            prefetch_factor=4 if workers else None,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move batches to the device; photos for evaluation are moved by the detector."""
        return batch.to(device) if isinstance(batch, Batch) else batch


def evaluated(recipe: Recipe, val: Source) -> list[int]:
    """Indices of the photos to evaluate. Raises DeformscopeError for unknown classes in ``evaluation.classes``."""
    unknown = [name for name in recipe.evaluation.classes if name not in val.names]
    if unknown:
        raise DeformscopeError(
            f"evaluation.classes: {', '.join(map(repr, unknown))}; the data have {', '.join(val.names)}"
        )
    return list(range(len(val)))[: recipe.evaluation.photos]

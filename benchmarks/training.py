"""Where a training step's time goes, and one epoch beside torchvision's reference loop on the same photos and network.

    python benchmarks/training.py shapes
    python benchmarks/training.py animals data.folder=voc_animals network.weights=trunk.pt data.views='[whole]'
    python benchmarks/training.py shapes --epoch voc_animals --photos 200

The loop of the comparison is that of torchvision's references/detection (engine.py, coco_utils.py, presets.py): wrapped
CocoDetection, v2 transforms, a list of images, and the losses read every step.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import timing
import torch
from timing import interleaved, median, speed_up
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from deformscope.detectors.deform import DeformConv
from deformscope.detectors.dense.trunk import Trunk
from deformscope.detectors.detector import Batch
from deformscope.training import networks
from deformscope.training.cache import CachedMaps, cached
from deformscope.training.datamodule import RecipeData, SeededItems, source
from deformscope.training.learning import Learning
from deformscope.training.order import Order, Steps
from deformscope.training.reading import read
from deformscope.training.recipe import Recipe
from deformscope.training.run import PRECISIONS
from deformscope.training.run_folder import hardware
from deformscope.training.sources import CocoFolder, collate


def split(recipe: Recipe, rounds: int) -> None:
    """Milliseconds of data, trunk, deformable convolutions and the rest, forward and backward."""
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    if recipe.data.cache is None:
        items: Any = SeededItems(photos, recipe, detector.prepare)
        count = len(photos)
    else:
        items = CachedMaps(cached(detector, photos, recipe.data))
        count = len(items)
    steps = iter(
        DataLoader(
            items,
            batch_sampler=Steps(Order([0] * count, recipe.data.batch, 0), 0, 10**6),
            collate_fn=collate,
            num_workers=recipe.data.workers,
        )
    )
    batch: Batch = next(steps)
    optimiser = Learning(recipe, detector, photos).configure_optimizers()["optimizer"]
    inputs = _inputs(detector, batch)

    def step() -> None:
        optimiser.zero_grad()
        torch.stack(list(detector.losses(batch).values())).sum().backward()
        optimiser.step()

    def deformable() -> None:
        for module, x in inputs:
            module(x.detach().requires_grad_()).sum().backward()

    def trunk() -> None:
        part: Any = detector.backbone if detector.trunk is None else detector.trunk
        if batch.images is not None:
            last = torch.contiguous_format if detector.trunk is None else torch.channels_last
            maps = part(batch.images.to(memory_format=last))
        elif batch.maps is not None and isinstance(part, Trunk):
            maps = part.above(batch.maps)
        else:
            return
        values = list(maps.values()) if isinstance(maps, dict) else maps
        if values[-1].requires_grad:
            sum(value.sum() for value in values).backward()  # type: ignore[union-attr]

    spent = interleaved({"data": lambda: next(steps), "step": step, "trunk": trunk, "deformable": deformable}, rounds)
    data, whole, first, deform = (median(spent[name]) for name in ("data", "step", "trunk", "deformable"))
    inside = _trunk_has_deformable(detector)
    rest = whole - first - (0 if inside else deform)
    print(f"{recipe.name}, {recipe.network.offset_mode}, batch {recipe.data.batch}; {hardware()}")
    print(f"  data, {recipe.data.workers} workers      {data:9.1f} ms")
    print(f"  step without data      {whole:9.1f} ms")
    print(f"    trunk                {first:9.1f} ms{' (with its deformable convolutions)' if inside else ''}")
    print(f"    deformable           {deform:9.1f} ms")
    print(f"    heads, losses, rest  {rest:9.1f} ms")


def epoch(recipe: Recipe, folder: Path, split_name: str, photos: int, rounds: int) -> None:
    """Seconds of one pass over the photos, by the Lightning run and by torchvision's reference loop."""
    files = CocoFolder(folder, split_name)
    batch = recipe.data.batch
    steps = photos // batch

    def lightning() -> None:
        _lightning_epoch(recipe, files, steps)

    def reference() -> None:
        _reference_epoch(recipe, files, folder, split_name, steps)

    spent = interleaved({"deformscope": lightning, "reference": reference}, rounds)
    for name in spent:
        print(f"  {name:12} {median(spent[name]) / 1e3:7.2f} s for {steps} steps of {batch} photos")
    print(f"  deformscope is {speed_up(spent, 'deformscope', 'reference'):.2f} times as fast")


def _lightning_epoch(recipe: Recipe, files: CocoFolder, steps: int) -> None:
    import logging
    import warnings

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    detector = networks.build(recipe, files.names)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator=recipe.run.accelerator,
            precision=PRECISIONS[recipe.run.precision],
            max_steps=steps,
            max_epochs=-1,
            check_val_every_n_epoch=10**6,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(Learning(recipe, detector, files), datamodule=RecipeData(recipe, detector, files, files))


def _reference_epoch(recipe: Recipe, files: CocoFolder, folder: Path, split_name: str, steps: int) -> None:
    import contextlib
    import io

    from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
    from torchvision.transforms import v2

    transforms = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(0.5)])
    with contextlib.redirect_stdout(io.StringIO()):
        data = CocoDetection(
            str(folder / split_name),
            str(folder / "annotations" / f"instances_{split_name}.json"),
            transforms=transforms,
        )
    wrapped = wrap_dataset_for_transforms_v2(data, target_keys=("boxes", "labels"))
    chosen = Subset(wrapped, range(steps * recipe.data.batch))
    loader = DataLoader(chosen, recipe.data.batch, shuffle=True, collate_fn=lambda b: tuple(zip(*b, strict=True)))
    detector = networks.build(recipe, files.names)
    labels = {c: i for i, c in enumerate(sorted(data.coco.cats))}
    optimiser = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], recipe.optimiser.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    for images, targets in loader:
        batch = _reference_batch(detector, images, targets, labels)
        losses = detector.losses(batch)
        total = sum(losses.values())
        values = {name: value.item() for name, value in losses.items()}
        if not math.isfinite(sum(values.values())):
            raise SystemExit("the loss is not finite")
        optimiser.zero_grad()
        total.backward()  # type: ignore[union-attr]
        optimiser.step()
        schedule.step()


def _reference_batch(detector: Any, images: Any, targets: Any, labels: dict[int, int]) -> Batch:
    """What GeneralizedRCNNTransform does in the reference: here by the detector's own preparation."""
    photos = [image.permute(1, 2, 0).contiguous().numpy() for image in images]
    prepared, placements = detector.prepare(photos)
    moved = []
    for target, placement in zip(targets, placements, strict=True):
        boxes = target.get("boxes", torch.zeros(0, 4))
        scale = torch.tensor([placement.scale[1], placement.scale[0]] * 2)
        own = torch.tensor([labels[int(c)] for c in target.get("labels", [])], dtype=torch.int64)
        moved.append(
            {"boxes": boxes.as_subclass(Tensor) * scale, "labels": own, "ignore": torch.zeros(len(own)).bool()}
        )
    return Batch(moved, prepared, tuple(placements))


def _inputs(detector: nn.Module, batch: Batch) -> list[tuple[nn.Module, Tensor]]:
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.append((module, args[0])))
        for module in detector.modules()
        if isinstance(module, DeformConv)
    ]
    detector.losses(batch)
    for hook in hooks:
        hook.remove()
    return seen


def _trunk_has_deformable(detector: nn.Module) -> bool:
    part = detector.backbone if detector.trunk is None else detector.trunk
    return any(isinstance(module, DeformConv) for module in part.modules())  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", action="store_true", help="processor time, of one thread")
    parser.add_argument("--epoch", type=Path, help="compare an epoch on this folder in COCO's layout")
    parser.add_argument("--split", default="train")
    parser.add_argument("--photos", type=int, default=160)
    args = parser.parse_args()
    if args.cpu:
        torch.set_num_threads(1)
        timing.clock = time.process_time
    recipe = read(args.recipe, args.overrides)
    if args.epoch is None:
        split(recipe, args.rounds)
        return
    run = [f"data.folder={args.epoch}", f"run.steps={args.photos // recipe.data.batch}", "run.checkpoint_every=100000"]
    run += ["optimiser.schedule=constant", "optimiser.grad_clip_norm=null"]
    epoch(read(args.recipe, [*args.overrides, *run]), args.epoch, args.split, args.photos, args.rounds)


if __name__ == "__main__":
    main()

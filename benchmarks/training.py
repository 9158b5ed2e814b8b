"""Where a training step's time goes: data, trunk, deformable convolutions, the rest.

python benchmarks/training.py shapes
python benchmarks/training.py animals data.folder=voc_animals network.weights=trunk.pt data.views='[whole]'
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import timing
import torch
from timing import interleaved, median
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deformscope.detectors.deform import DeformConv
from deformscope.detectors.dense.trunk import Trunk
from deformscope.detectors.detector import Batch
from deformscope.training import networks
from deformscope.training.cache import CachedMaps, cached
from deformscope.training.datamodule import SeededItems, source
from deformscope.training.learning import Learning
from deformscope.training.order import Order, Steps
from deformscope.training.reading import read
from deformscope.training.recipe import Recipe
from deformscope.training.run_folder import hardware
from deformscope.training.sources import collate


def split(recipe: Recipe, rounds: int) -> None:
    """Milliseconds of data, trunk, deformable convolutions and the rest, forward and backward."""
    photos = source(recipe, "train")
    detector = networks.build(recipe, photos.names)
    if recipe.data.cache is None:
        items: Any = SeededItems(photos, recipe, detector.prepare)
    else:
        items = CachedMaps(cached(detector, photos, recipe.data))
    order = Steps(Order([0] * len(photos), recipe.data.batch, 0), 0, 10**6)
    steps = iter(DataLoader(items, batch_sampler=order, collate_fn=collate, num_workers=recipe.data.workers))
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
    part = detector.backbone if detector.trunk is None else detector.trunk
    inside = any(isinstance(module, DeformConv) for module in part.modules())
    lines = {"data": data, "step without data": whole, "  trunk": first, "  deformable": deform}
    lines["  heads, losses, rest"] = whole - first - (0 if inside else deform)
    print(f"{recipe.name}, {recipe.network.offset_mode}, {recipe.data.workers} workers; {hardware()}")
    print("\n".join(f"  {name:24}{value:9.1f} ms" for name, value in lines.items()))
    if inside:
        print("The trunk's time has that of its deformable convolutions.")


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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", action="store_true", help="processor time, of one thread")
    args = parser.parse_args()
    if args.cpu:
        torch.set_num_threads(1)
        timing.clock = time.process_time
    split(read(args.recipe, args.overrides), args.rounds)


if __name__ == "__main__":
    main()

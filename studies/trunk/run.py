"""Train and measure what docs/results/trunk.md tells of: deformable convolutions in the trunk.

    python studies/trunk/run.py run FOLDER --animals PHOTOS      # goes on where it was broken off
    python studies/trunk/run.py table FOLDER                     # docs/results/trunk_runs.{json,md} and a figure

A run's folder is FOLDER/RECIPE/ARM-seedN, as `deformscope train` makes it. `offsets.json` beside the result has the
rms of the offsets while they learn, the effective dilation and the receptive field; `score/` the claims of layers that
are not dead, each composed with up to two below it.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tables import collect

import deformscope as ds
from deformscope.attribution.receptive_field import ReceptiveField
from deformscope.files import write_json
from deformscope.score import Settings, score
from deformscope.training.datamodule import evaluated, source
from deformscope.training.reading import read
from deformscope.training.recipe import Recipe
from deformscope.training.run import load, train

DEAD = 0.1
"""Cells: a layer whose offsets have a smaller rms is dead, and no field of it is measured."""
SNAPSHOTS = [50, 150, 400, 800]
PHOTOS, SCORED, SEEN = 150, 150, 30
"""Validation photos for effective dilation, for the claims, and for receptive fields and snapshots."""
MEASURED = {"animals": slice(2, 3), "trunk": slice(2, 3), "shapes": slice(0, 2)}
"""Layers whose claims are measured, and the last of them with its effective dilation: stride 32 predicts no object of
the shapes, which are too small."""
SMALL, LARGE = 64.0, 140.0
"""√area in network px: limits of small, medium and large objects, those of the heads' levels."""

OFFSET_MODES = ("none", "feature", "kernel", "full")
HEADS = ["network.deform_layers=0", "optimiser.trunk_lr=0.1", "optimiser.offset_lr=0.1"]


def _trunk(cut: int, pyramid: bool = False) -> list[str]:
    blocks, levels = [cut - 2, cut - 1, cut], "[8, 16]" if pyramid else "[16]"
    return [
        *HEADS,
        f"network.trunk={{deformable: {blocks}, cut: {cut}, levels: {levels}, pyramid: {str(pyramid).lower()}}}",
    ]


ANIMALS: dict[str, list[str]] = {
    **{
        f"cut{cut}{'p' if pyramid else ''}-{mode}": [*_trunk(cut, pyramid), f"network.offset_mode={mode}"]
        for cut in (8, 10, 13)
        for pyramid in (False, True)
        for mode in OFFSET_MODES
    },
    "cut10-full-rate.1": [*_trunk(10), "optimiser.offset_lr=0.01"],
    "cut10-full-rate10": [*_trunk(10), "optimiser.offset_lr=1.0"],
    "cut10-full-start": [
        *_trunk(10),
        (
            "optimiser.offset_supervision={weight: 0.5, schedule: decay, schedule_steps: 400, composed: 3, "
            "layers: ['trunk.features.10.*']}"
        ),
    ],
}
SHAPES: dict[str, list[str]] = {
    mode: ["network.deform_layers=0", "network.trunk={deformable: [2, 3, 4]}", f"network.offset_mode={mode}"]
    for mode in OFFSET_MODES
}
ARMS = {"animals": ANIMALS, "shapes": SHAPES, "trunk": {mode: [f"network.offset_mode={mode}"] for mode in OFFSET_MODES}}
"""By recipe; `trunk`, of which the packaged detector is `full`, is `animals` at cut 13, four times as long."""
STEPS = {
    "animals": ["run.steps=800", f"run.snapshots={SNAPSHOTS}", "data.views=[whole,crop,mosaic]", "run.precision='32'"],
    "shapes": ["run.steps=800", f"run.snapshots={SNAPSHOTS}"],
    "trunk": [],
}
PLAN = [
    *[("animals", arm, 0) for arm in ("cut10-none", "cut10-full")],
    *[("shapes", arm, 0) for arm in ("none", "full")],
    *[("animals", f"cut{cut}-{mode}", 0) for cut in (13, 8) for mode in ("none", "full")],
    *[("trunk", mode, 0) for mode in ("none", "full")],
    *[("animals", f"cut13-{mode}", 1) for mode in ("none", "full")],
    *[("animals", f"cut13-{mode}", 0) for mode in ("feature", "kernel")],
    *[("animals", arm, 0) for arm in ("cut10-full-rate10", "cut10-full-rate.1", "cut10-full-start")],
    *[("animals", f"cut10-{mode}", 1) for mode in ("none", "full")],
    *[("shapes", mode, 1) for mode in ("none", "full")],
    *[("animals", f"cut{cut}p-{mode}", 0) for cut in (10, 13) for mode in ("none", "full")],
    *[("animals", f"cut13-{mode}", 1) for mode in ("feature", "kernel")],
    *[("animals", f"cut8-{mode}", 1) for mode in ("none", "full")],
    *[("animals", arm, 1) for arm in ("cut10-full-rate.1", "cut10-full-rate10", "cut10-full-start")],
    *[("trunk", mode, 1) for mode in ("none", "full")],
    *[("shapes", mode, seed) for seed in (0, 1) for mode in ("feature", "kernel")],
    *[("animals", f"cut8p-{mode}", 0) for mode in ("none", "full")],
    *[("animals", f"cut{cut}p-{mode}", 1) for cut in (8, 10, 13) for mode in ("none", "full")],
    *[("animals", f"cut{cut}-{mode}", seed) for seed in (0, 1) for cut in (8, 10) for mode in ("feature", "kernel")],
]
"""Runs in their order: whole comparisons of one seed first."""


def main() -> None:
    """One of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--animals", help="photos in COCO's layout; without them the animals are left out")
    parser.add_argument("--cache", default="cache", help="folder of the frozen blocks' maps")
    chosen = parser.parse_args()
    if chosen.command == "table":
        collect(chosen.folder, list(dict.fromkeys((name, arm) for name, arm, _ in PLAN)))
        return
    torch.set_num_threads(1)
    for name, arm, seed in PLAN:
        of_photos = name != "shapes"
        if of_photos and chosen.animals is None:
            continue
        overrides = [*STEPS[name], f"run.seed={seed}", *ARMS[name][arm]]
        if of_photos:
            overrides += [f"data.folder={chosen.animals}", f"data.cache={chosen.cache}"]
        recipe, folder = read(name, overrides), chosen.folder / name / f"{arm}-seed{seed}"
        result = train(recipe, folder, progress=False)
        photos = Path(chosen.animals) if of_photos else drawn(recipe, chosen.folder / "shapes_photos")
        found = measured(recipe, folder, photos)
        print(
            f"{name} {arm} seed {seed}: AP {result.scores['ap']:.2f}, {result.seconds:.0f} s, rms {found.get('rms')}",
            flush=True,
        )


def measured(recipe: Recipe, folder: Path, photos: Path) -> dict[str, Any]:
    """All that is measured of a run's fields, in cells of their layers' inputs."""
    path = folder / "offsets.json"
    if path.exists():
        return json.loads(path.read_text())
    _, detector = load(folder)
    val = source(recipe, "val")
    indices = evaluated(recipe, val)
    found: dict[str, Any] = {"receptive_field": receptive_field(detector, val, indices[:SEEN])}
    if recipe.network.offset_mode != "none":
        saved = {step: folder / f"step-{step}.safetensors" for step in recipe.run.snapshots}
        grown = {step: rms(ds.load(file), val, indices[:SEEN]) for step, file in saved.items() if file.exists()}
        found |= {"growth": grown, "rms": rms(detector, val, indices[:PHOTOS])}
        layers = list(found["rms"])[MEASURED[recipe.name]]
        found["dilation"] = effective_dilation(detector, layers[-1], val, indices[:PHOTOS])
        alive = tuple(layer for layer in layers if found["rms"][layer] >= DEAD)
        if alive:
            score(detector, photos, folder / "score", Settings(layers=alive, max_photos=SCORED, composed=True))
    write_json(path, found)
    return found


def rms(detector: Any, val: Any, indices: list[int]) -> dict[str, float]:
    """Root mean square of each layer's offsets, over photos, cells and kernel points."""
    squares: dict[str, list[float]] = defaultdict(list)
    for index in indices:
        for name, field in _fields(detector, val, index).items():
            squares[name].append(float(field.offset.square().sum(-1).mean()))
    return {name: round(float(np.mean(values)) ** 0.5, 4) for name, values in squares.items()}


def effective_dilation(detector: Any, layer: str, val: Any, indices: list[int]) -> dict[str, Any]:
    """Dai et al. (ICCV 2017), Table 2: mean distance of adjacent sampling points, by what is at the cell's place.

    A cell belongs to the smallest box around it. The mean over cells, and how many cells there are.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    for index in indices:
        sample = val.load(index)
        field = _fields(detector, val, index)[layer]
        points = field.sampling_points()[0, 0].unflatten(0, field.kernel_size)  # [ky kx h w 2]
        down, across = (points.diff(dim=axis).norm(dim=-1).flatten(0, 1) for axis in (0, 1))
        spread = torch.cat([down, across]).mean(dim=0)
        h, w = spread.shape
        cells = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1).float()
        y, x = field.placement().to_photo(field.output_cells.to_network(cells)).unbind(-1)
        smallest = torch.full((h, w), torch.inf)
        scale = float(np.prod(field.placement().scale)) ** 0.5
        for x0, y0, x1, y1 in sample.boxes[~sample.ignore].tolist():
            size = scale * ((x1 - x0) * (y1 - y0)) ** 0.5
            inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
            smallest = torch.where(inside & (smallest > size), size, smallest)
        kinds = {
            "small": smallest < SMALL,
            "medium": (smallest >= SMALL) & (smallest < LARGE),
            "large": (smallest >= LARGE) & smallest.isfinite(),
            "background": smallest.isinf(),
        }
        for kind, chosen in kinds.items():
            sums[kind] += spread[chosen].tolist()
    return {kind: {"mean": round(float(np.mean(v)), 4), "cells": len(v)} for kind, v in sums.items() if v}


def receptive_field(detector: Any, val: Any, indices: list[int]) -> dict[str, Any]:
    """Of the best detection of each photo: share of the receptive field's mass in its box, over chance, and the radii
    that hold 50 and 95 % of it over √(box area)."""
    rows = []
    for index in indices:
        batch, placements = detector.prepare([_photo(val, index)])
        batch.requires_grad_()
        best = detector.detect(batch, placements, min_score=0.0)[0]
        if not len(best["boxes"]):
            continue
        (gradient,) = torch.autograd.grad(best["logits"][0], batch)
        box, seen = best["boxes"][0].detach(), ReceptiveField(gradient[0].abs().sum(0), placements[0])
        root = float(((box[2] - box[0]) * (box[3] - box[1])) ** 0.5)
        rows.append([seen.share_in(box), seen.over_chance(box), seen.radius(0.5) / root, seen.radius(0.95) / root])
    means = np.nanmean(np.array(rows), axis=0)
    names = ("share_in_box", "over_chance", "radius50", "radius95")
    return {"photos": len(rows)} | {name: round(float(value), 3) for name, value in zip(names, means, strict=True)}


def drawn(recipe: Recipe, folder: Path) -> Path:
    """The first validation shapes as photos in COCO's layout, for the claims."""
    if not (folder / "annotations/instances_val.json").exists():
        val = source(recipe, "val")
        (folder / "val").mkdir(parents=True, exist_ok=True)
        truth = val.truth()
        for image in truth["images"][:SCORED]:
            Image.fromarray(_photo(val, image["id"])).save(folder / "val" / image["file_name"])
        truth["images"] = truth["images"][:SCORED]
        truth["annotations"] = [one for one in truth["annotations"] if one["image_id"] < SCORED]
        (folder / "annotations").mkdir(exist_ok=True)
        write_json(folder / "annotations/instances_val.json", truth, indent=None)
    return folder


def _photo(val: Any, index: int) -> np.ndarray:
    return val.load(index).image.permute(1, 2, 0).contiguous().numpy()


def _fields(detector: Any, val: Any, index: int) -> dict[str, Any]:
    with ds.capture(detector) as fields:
        detector(_photo(val, index))
    return dict(fields)


if __name__ == "__main__":
    main()

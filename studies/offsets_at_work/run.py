"""Train and measure what docs/results/offsets_at_work.md tells of: supervised offsets, boxes decoded from them.

    python studies/offsets_at_work/run.py run FOLDER --animals PHOTOS    # goes on where it was broken off
    python studies/offsets_at_work/run.py table FOLDER                   # runs.json

A run's folder is FOLDER/RECIPE/ARM-seedN, as `deformscope train` makes it, and `field.json` beside the result.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import collect
from scipy.stats import spearmanr

import deformscope as ds
from deformscope.detectors.dense import DenseDetector
from deformscope.detectors.dense.config import STRIDES
from deformscope.detectors.dense.predictions import LEVEL_RANGES
from deformscope.fields.stack import composed, upstream
from deformscope.training.datamodule import evaluated, source
from deformscope.training.reading import read
from deformscope.training.recipe import Recipe
from deformscope.training.run import load, train
from deformscope.training.offset_losses import assigned, kernels_of

TOLD = "optimiser.offset_supervision="
ARMS: dict[str, list[str]] = {
    "D0": [],
    "D0-told": [TOLD + "{weight: 0.5}"],
    "D2": ["network.decode=D2"],
    "D2-told": ["network.decode=D2", TOLD + "{weight: 0.5}"],
    "D0-told2": [TOLD + "{weight: 2.0}"],
    "D2-told2": ["network.decode=D2", TOLD + "{weight: 2.0}"],
    "D0c": ["network.decode=D0c"],
    "D0c-told": ["network.decode=D0c", TOLD + "{weight: 0.5}"],
    **{
        f"{decode}-{mode}": [f"network.decode={decode}", f"network.offset_mode={mode}"]
        for decode in ("D0", "D2")
        for mode in ("none", "feature", "kernel")
    },
    "D0-decay": [TOLD + "{weight: 0.5, schedule: decay}"],
    "D2-decay": ["network.decode=D2", TOLD + "{weight: 0.5, schedule: decay}"],
    "D2-shuffled": ["network.decode=D2", TOLD + "{weight: 0.5, targets: shuffled}"],
    "D2-side": ["network.decode=D2", TOLD + "{weight: 0.5, side_branch: true}"],
    "D2-centre": ["network.decode=D2", TOLD + "{weight: 0.5, loss: [centre]}"],
    "D2-extent": ["network.decode=D2", TOLD + "{weight: 0.5, loss: [extent]}"],
    "D2-task0": ["network.decode=D2", TOLD + "{weight: 0.5, task_gradient: 0.0}"],
    "D2-task0.1": ["network.decode=D2", TOLD + "{weight: 0.5, task_gradient: 0.1}"],
    "D0-long": ["run.steps=6000"],
    "D2-long": ["network.decode=D2", "run.steps=6000"],
}
"""By name: what differs from the recipe. ``told``: supervised by centre and extent with weight .5, ``told2`` 2;
``long``: as long as the packaged detector."""
PILOT = ("D0", "D0-told", "D2", "D2-told", "D0c")
FACTORIAL = PILOT[:4]
TABLE1 = ("D2-none", "D2-feature", "D2-kernel")
CONTROLS = ("D2-shuffled", "D2-side", "D0-decay", "D2-decay", "D2-task0", "D2-task0.1", "D2-centre", "D2-extent")
PLAN = [
    *[("shapes", arm, seed) for seed in (0, 1) for arm in PILOT],
    *[("shapes", arm, 0) for arm in ("D0-told2", "D2-told2", *CONTROLS[:2], *TABLE1, *CONTROLS[2:4])],
    *[("shapes", arm, 0) for arm in ("D0-none", "D0-feature", "D0-kernel")],
    *[("shapes", arm, 2) for arm in PILOT],
    *[("animals", arm, 0) for arm in ("D0", "D2-told", "D2", "D0-told")],
    *[("shapes", arm, seed) for seed in (1, 2) for arm in TABLE1],
    *[("shapes", arm, 1) for arm in ("D0-told2", "D2-told2", *CONTROLS[:4])],
    *[("shapes", arm, seed) for seed in (0, 1) for arm in (*CONTROLS[4:], "D0c-told")],
    *[("animals", arm, 1) for arm in FACTORIAL],
    *[("animals", "D0c", seed) for seed in (0, 1)],
    *[("animals", arm, seed) for seed in (0, 1) for arm in TABLE1],
    *[("animals", arm, 0) for arm in ("D0-none", "D0-feature", "D0-kernel")],
    *[("animals", arm, seed) for seed in (0, 1) for arm in ("D2-long", "D0-long")],
    *[("animals", arm, 0) for arm in ("D2-shuffled", "D2-side", "D2-decay")],
    *[("packaged", arm, 0) for arm in ("D2", "D0")],
]
"""Runs in their order: whole comparisons of one seed first."""
STEPS = {
    "shapes": ["run.steps=600"],
    "animals": ["run.steps=1500", "data.views=[whole,crop,mosaic]", "run.precision='32'"],
    "packaged": [],
}
"""By recipe; `packaged`, of which the packaged detectors `packaged` (D0) and `guided` (D2) are, learns from photos of
Pascal VOC and COCO, which `studies/packaged/merge_photos.py` puts into one folder: run it alone, with `--recipe`."""


def main() -> None:
    """One of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--animals", help="photos in COCO's layout; without them the animals are left out")
    parser.add_argument("--cache", default="cache", help="folder of the frozen trunk's maps")
    parser.add_argument("--recipe", choices=tuple(STEPS), help="only the runs of this recipe")
    parser.add_argument("--arms", nargs="*", help="only these arms")
    chosen = parser.parse_args()
    if chosen.command == "table":
        collect(chosen.folder, tuple(ARMS))
        return
    torch.set_num_threads(1)
    for name, arm, seed in PLAN:
        if (name != "shapes" and chosen.animals is None) or chosen.recipe not in (None, name):
            continue
        if name == "packaged" and chosen.recipe is None:
            continue
        if chosen.arms and arm not in chosen.arms:
            continue
        overrides = [*STEPS[name], f"run.seed={seed}", *ARMS[arm]]
        if name != "shapes":
            overrides += [f"data.folder={chosen.animals}", f"data.cache={chosen.cache}"]
        recipe, folder = read(name, overrides), chosen.folder / name / f"{arm}-seed{seed}"
        result = train(recipe, folder, progress=False)
        measured(recipe, folder)
        print(f"{name} {arm} seed {seed}: AP {result.scores['ap']:.2f}, {result.seconds:.0f} s", flush=True)


def measured(recipe: Recipe, folder: Path, photos: int = 400) -> dict[str, Any]:
    """How well the trained field finds centres and sizes, by stride, on the first ``photos`` of the validation split.

    Over the cells in boxes, each with the smallest box of its level: distance of p0 and of p0 + d_f from the box's
    centre in √area (means over the objects); Spearman's ρ of √(width·height) of the kernel with √area, over objects.
    """
    path = folder / "field.json"
    if path.exists():
        return json.loads(path.read_text())
    found: dict[str, Any] = {}
    if recipe.network.offset_mode != "none":
        _, detector = load(folder)
        assert isinstance(detector, DenseDetector)
        rows = defaultdict(list)
        val = source(recipe, "val")
        for index in evaluated(recipe, val)[:photos]:
            sample = val.load(index)
            batch, placements = detector.prepare([sample.image.permute(1, 2, 0).numpy()])
            scale = torch.tensor([placements[0].scale[1], placements[0].scale[0]] * 2)
            target = {"boxes": sample.boxes * scale, "ignore": sample.ignore}
            with torch.no_grad(), ds.capture(detector) as fields:
                detector.detect(batch, placements)
            for stride, sizes in zip(STRIDES, LEVEL_RANGES, strict=True):
                chain = upstream(fields, f"heads.stride{stride}.deform", recipe.network.deform_layers)
                rows[stride] += objects(composed(chain), target, sizes)
        for stride, values in rows.items():
            if len(values) < 10:
                continue
            table = np.array(values)
            found[str(stride)] = {
                "objects": len(values),
                "still": float(table[:, 0].mean()),
                "error": float(table[:, 1].mean()),
                # With d_f alone all kernels have one size.
                "rho": float(spearmanr(table[:, 2], table[:, 3]).statistic) if np.ptp(table[:, 2]) > 1e-3 else None,
            }
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def objects(field: ds.OffsetField, target: dict[str, torch.Tensor], sizes: tuple[float, float]) -> list[list[float]]:
    """Of each object with a cell: distances of p0 and p0 + d_f, the kernels' size (px), the object's."""
    *_, h, w, _ = field.offset.shape
    cells = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"), dim=-1).float()
    places = field.output_cells.to_network(cells)
    index, rows = assigned(places, target, sizes), []
    for number in index.unique().tolist():
        if number < 0:
            continue
        y, x = torch.nonzero(index == number, as_tuple=True)
        box = target["boxes"][number]
        middle, size = (box[:2] + box[2:]).flip(0) / 2, (box[2:] - box[:2]).prod().sqrt()
        kernels = kernels_of(field, torch.zeros_like(y), y, x)
        still, moved = places[y, x] - middle, kernels.centre[:, 0] - middle
        rows.append(
            [
                (still.norm(dim=1).mean() / size).item(),
                (moved.norm(dim=1).mean() / size).item(),
                kernels.extent[:, 0].prod(dim=1).sqrt().mean().item(),
                size.item(),
            ]
        )
    return rows


if __name__ == "__main__":
    main()

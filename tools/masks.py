"""Train and measure what docs/results/masks.md tells of: masks out of offsets, learned from boxes alone.

    python tools/masks.py run FOLDER --animals PHOTOS     # goes on where it was broken off
    python tools/masks.py table FOLDER                    # docs/results/masks_runs.{json,md}

A run's folder is FOLDER/ARM-seedN, as `deformscope train` makes it, with `masks/` (what `deformscope.score` measures of
its masks) and, where GrabCut was measured too, `grabcut/`. FOLDER/bars-packaged is the packaged detector.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deformscope as ds
from deformscope.metrics import bootstrap
from deformscope.score.masks import RECORDS, MaskSettings, measure_masks
from deformscope.score.summary.masks import resampled_masks
from deformscope.training.recipe.reading import read
from deformscope.training.run.run_folder import DETECTOR
from deformscope.training.run.train import train

DOCS = Path(__file__).parents[1] / "docs/results"
SIX = ("cat", "dog", "horse", "cow", "sheep", "person")
BOXES_ALONE = ["network.mask_hidden=0", "data.mask_targets=null", "optimiser.lr=0.01", "optimiser.warmup=60"]
"""BoxInst's losses and no hidden convolutions, as the first runs had them."""
ARMS = {
    "full": ["network.mask_terms=[vote, divergence, unary]", *BOXES_ALONE],
    "unary": ["network.mask_terms=[unary]", *BOXES_ALONE],
    "vote": ["network.mask_terms=[vote]", *BOXES_ALONE],
    "vote-unary": ["network.mask_terms=[vote, unary]", *BOXES_ALONE],
    "dynamic": ["network.mask_terms=[dynamic]", *BOXES_ALONE],
    "box-unary": ["network.mask_terms=[box, divergence, unary]", *BOXES_ALONE],
    "dynamic-made": ["network.mask_terms=[unary, dynamic]", "run.steps=1500"],
    "dynamic-long": ["network.mask_terms=[unary, dynamic]", "run.steps=6000"],
    "unary-made": ["network.mask_terms=[unary]"],
    "vote-made": ["network.mask_terms=[vote, unary]"],
}
"""By name: what differs from the recipe `animals_box_masks`. Those with ``made`` or ``long`` learn from GrabCut's
masks."""
OTHERS = ("dynamic-600", "guided")
"""Measured beside them: `dynamic-made` with 600 views alone, 500 steps, trained by a script; and the packaged detector
`guided` (recipe `guided_masks`), which has other boxes."""
PLAN: list[tuple[str, int, bool]] = [
    ("full", 0, False),
    ("unary", 0, False),
    ("vote", 0, False),
    ("dynamic-made", 0, False),
    ("dynamic-made", 0, True),
    ("dynamic-long", 0, False),
    ("unary", 0, True),
    ("vote-unary", 0, False),
    ("dynamic", 0, False),
    ("unary-made", 0, False),
    ("vote-made", 0, False),
    ("full", 1, False),
    ("box-unary", 0, False),
    ("unary", 1, False),
    ("full", 0, True),
    ("dynamic-made", 1, False),
]
"""Runs in their order, and whether their masks are refined by GrabCut."""
BARS = ("filled", "ellipse", "grabcut", "grabcut_ellipse")
"""Measured once: all runs have the packaged detector's boxes."""
DIFFERENCES = (
    ("full", "unary"),
    ("full", "vote"),
    ("full", "vote-unary"),
    ("full", "dynamic"),
    ("full", "box-unary"),
    ("vote-unary", "unary"),
    ("dynamic-made", "unary"),
    ("dynamic-made", "full"),
    ("dynamic-made", "unary-made"),
    ("dynamic-made", "dynamic-600"),
    ("dynamic-long", "dynamic-made"),
    ("guided", "dynamic-made"),
    ("guided", "dynamic-long"),
    ("vote-made", "unary-made"),
)


def main() -> None:
    """One of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--animals", help="photos of Pascal VOC in COCO's layout")
    parser.add_argument("--cache", default="cache", help="folder of the frozen trunk's maps")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--arms", nargs="*", choices=tuple(ARMS), help="only these arms")
    chosen = parser.parse_args()
    if chosen.command == "table":
        tables(chosen.folder)
        return
    if chosen.animals is None:
        parser.error("--animals is needed")
    torch.set_num_threads(1)
    settings = MaskSettings(split="val_masks", classes=SIX, segments=False)
    for arm, seed, grabcut in PLAN:
        if chosen.arms and arm not in chosen.arms:
            continue
        folder = chosen.folder / f"{arm}-seed{seed}"
        overrides = [f"run.steps={chosen.steps}", f"run.seed={seed}", "run.checkpoint_every=100", *ARMS[arm]]
        # All photos are measured below, as GrabCut and the other bars are.
        overrides += [f"data.folder={chosen.animals}", f"data.cache={chosen.cache}", "evaluation.photos=50"]
        train(read("animals_box_masks", overrides), folder, progress=False)
        scores = measure_masks(
            ds.load(folder / DETECTOR),
            chosen.animals,
            folder / ("grabcut" if grabcut else "masks"),
            replace(settings, grabcut=grabcut, bars=("filled",)),
        )
        print(f"{arm} seed {seed}\n{scores}", flush=True)
    if not chosen.arms:
        measure_masks(
            ds.load("packaged"), chosen.animals, chosen.folder / "bars-packaged", replace(settings, segments=True)
        )


def tables(folder: Path) -> None:
    """Write what the finished runs measured, and their differences, paired over the photos that both measured."""
    found = {path.parent.parent.name: _records(path) for path in sorted(folder.glob(f"*/masks/{RECORDS}"))}
    found |= {f"{path.parent.parent.name}+GrabCut": _records(path) for path in folder.glob(f"*/grabcut/{RECORDS}")}
    found |= {f"first {path.parent.parent.name}": _records(path) for path in folder.glob(f"first/*/masks/{RECORDS}")}
    found |= {path.parent.name: _records(path) for path in sorted(folder.glob(f"bars-*/{RECORDS}"))}
    runs: list[dict[str, Any]] = []
    for name, records in found.items():
        weights = bootstrap.draws(len(records), 300)
        for source in records[0]["sources"]:
            if source.startswith("segments"):
                continue
            drawn = resampled_masks(records, source, SIX, weights)
            numbers = {key: round(float(values[0]), 4) for key, values in drawn.items()}
            low, high = bootstrap.interval(drawn["ap"][1:])
            runs.append({"run": name, "source": source, "photos": len(records), **numbers, "ap_interval": [low, high]})
    (DOCS / "masks_runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    lines = ["# Masks from boxes: every run", "", "Written by `tools/masks.py table`.", ""]
    lines += [f"AP in percent, mean of {', '.join(SIX)}.", ""]
    lines += ["| run | masks | photos | AP [95 %] | AP50 | AP75 | IoU | IoU in true boxes |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|---:|"]
    for run in runs:
        low, high = run["ap_interval"]
        cells = [f"{run['ap']:.1f} [{low:.1f}, {high:.1f}]", f"{run['ap50']:.1f}", f"{run['ap75']:.1f}"]
        cells += [f"{run[key]:.3f}" if key in run else "–" for key in ("iou", "true_iou")]
        lines.append("| " + " | ".join([run["run"], run["source"], str(run["photos"]), *cells]) + " |")
    lines += [
        "",
        "| difference of AP, paired by seed | photos | each seed | 95 % over photos |",
        "|---|---:|---:|---:|",
    ]
    pairs = [((over, "masks"), (under, "masks")) for over, under in DIFFERENCES]
    pairs += [((arm, "masks"), ("bars", bar)) for arm in (*ARMS, *OTHERS) for bar in BARS]
    for arm in ("full", "unary", "dynamic-made", *OTHERS):
        pairs += [((arm, "grabcut_masks"), ("bars", bar)) for bar in BARS[2:]]
        pairs += [((arm, "grabcut_masks"), (arm, "masks"))]
    lines += [line for over, under in pairs if (line := _difference(found, over, under))]
    (DOCS / "masks_runs.md").write_text("\n".join(lines) + "\n")


def _difference(found: dict[str, list[dict[str, Any]]], over: tuple[str, str], under: tuple[str, str]) -> str | None:
    gaps, count = [], 0
    for seed in range(3):
        both = [found.get(_run(*one, seed), []) for one in (over, under)]
        shared = {record["image"] for record in both[0]} & {record["image"] for record in both[1]}
        if not shared:
            continue
        # Every run has the photos in the same order.
        kept = [[record for record in records if record["image"] in shared] for records in both]
        weights, count = bootstrap.draws(len(shared), 300), len(shared)
        one, other = (
            resampled_masks(records, source, SIX, weights)["ap"]
            for records, (_, source) in zip(kept, (over, under), strict=True)
        )
        gaps.append(one - other)
    if not gaps:
        return None
    low, high = bootstrap.interval(np.mean([gap[1:] for gap in gaps], axis=0))
    each = ", ".join(f"{gap[0]:+.1f}" for gap in gaps)
    names = [arm if source == "masks" else f"{arm}: {source}" for arm, source in (over, under)]
    return f"| {names[0]} − {names[1]} | {count} | {each} | {low:+.1f} to {high:+.1f} |"


def _run(arm: str, source: str, seed: int) -> str:
    name = "bars-packaged" if arm == "bars" else f"{arm}-seed{seed}"
    return name + "+GrabCut" if source == "grabcut_masks" else name


def _records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()

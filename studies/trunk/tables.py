"""Tables of runs.json, which `run.py table` writes, and the dose curve."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
SEES = {8: 107, 10: 171, 13: 267}
"""Theoretical receptive field of MobileNetV2 at stride 16, cut after this block, px."""
PYRAMID = 32
"""What the pyramid's 3×3 convolution adds to it at stride 16, px."""
CLAIMS = ("pointing", "cosine", "auroc", "auroc_ring", "spearman_centre")
NULLS = ("fresh", "shuffled", "noise", "centre")
AP = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
VIEWS = {"whole": "whole", "crop": "off-centre crops"}
Draws = dict[tuple[str, str, int], Any]


def collect(folder: Path, arms: list[tuple[str, str]]) -> None:
    """Write what the finished runs measured, their differences, and the dose curve."""
    import numpy as np
    from figure import dose_curve

    from deformscope.training.run_folder import RESULT
    from deformscope.training.summary import of_run

    runs, draws = [], {}
    for path in sorted(folder.glob(f"*/*/{RESULT}")):
        result = json.loads(path.read_text())
        arm, _, seed = path.parent.name.rpartition("-seed")
        name = path.parent.parent.name
        offsets, scored = path.parent / "offsets.json", path.parent / "score/scores.json"
        runs.append(
            {
                "recipe": name,
                "arm": arm,
                "seed": int(seed),
                "steps": result["steps"],
                "seconds": result["seconds"],
                **{key: result["scores"].get(key) for key in AP},
                **(json.loads(offsets.read_text()) if offsets.exists() else {}),  # it is being measured
                "claims": list(_claims(json.loads(scored.read_text()))) if scored.exists() else [],
            }
        )
        kept = path.parent / "resampled.npy"
        if not kept.exists():
            np.save(kept, of_run(path.parent))
        draws[name, arm, int(seed)] = np.load(kept)
    runs.sort(key=lambda run: (run["recipe"], arms.index((run["recipe"], run["arm"])), run["seed"]))
    differences = {name: list(_differences(name, runs, draws)) for name in dict.fromkeys(r["recipe"] for r in runs)}
    content = {"runs": runs, "differences": differences}
    (HERE / "runs.json").write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n")
    found = doses(draws)
    if len(found) > 1:
        dose_curve(found, runs, object_size(folder / "animals"), DOCS / "figures/trunk_dose.png")


def doses(draws: Draws) -> list[dict[str, Any]]:
    """full − none of every trunk that has both: mean over seeds and the interval over photos."""
    import numpy as np

    from deformscope.metrics import bootstrap

    found = []
    for cut, sees in SEES.items():
        for pyramid in (False, True):
            arm = f"cut{cut}{'p' if pyramid else ''}"
            gaps = paired(draws, "animals", f"{arm}-full", f"{arm}-none")
            if gaps:
                low, high = bootstrap.interval(np.mean([gap[1:] for gap in gaps.values()], axis=0))
                mean = float(np.mean([gap[0] for gap in gaps.values()]))
                found.append({"arm": arm, "sees": sees + PYRAMID * pyramid, "pyramid": pyramid, "seeds": len(gaps)})
                found[-1] |= {"mean": mean, "low": low, "high": high}
    return found


def paired(draws: Draws, name: str, over: str, under: str) -> dict[int, Any]:
    """Differences of AP by seed: on all photos, then on each resample."""
    seeds = sorted({s for n, arm, s in draws if (n, arm) == (name, over) and (name, under, s) in draws})
    return {seed: draws[name, over, seed] - draws[name, under, seed] for seed in seeds}


def object_size(folder: Path) -> float:
    """Mean √area of the validation objects, network px of the detectors in ``folder``."""
    from deformscope.training.datamodule import evaluated, source
    from deformscope.training.run_folder import kept_recipe

    recipe = kept_recipe(next(iter(sorted(folder.glob("*-seed*")))))
    val, sizes = source(recipe, "val"), []
    for index in evaluated(recipe, val):
        sample = val.load(index)
        height, width = val.sizes[index]
        scale = min(256 / min(height, width), 448 / max(height, width))
        boxes = sample.boxes[~sample.ignore]
        sizes += ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt() * scale).tolist()
    return statistics.fmean(sizes)


def markdown(content: dict[str, Any]) -> str:
    """All tables."""
    lines = ["# Offsets in the trunk: every run", "", "Made of the study's `runs.json`.", ""]
    for name, differences in content["differences"].items():
        own = [run for run in content["runs"] if run["recipe"] == name]
        lines += [f"## {name}, {own[0]['steps']} steps", "", "| arm | seed | AP | AP50 | AP75 | seconds |"]
        lines += ["|---|---:|---:|---:|---:|---:|"]
        for run in own:
            numbers = [f"{run[key]:.2f}" for key in ("ap", "ap50", "ap75")]
            lines.append("| " + " | ".join([run["arm"], str(run["seed"]), *numbers, f"{run['seconds']:.0f}"]) + " |")
        lines += ["", "| difference of AP, paired by seed | seeds | mean | each seed | 95 % over photos |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for label, each, mean, low, high in differences:
            shown = ", ".join(f"{value:+.2f}" for value in each)
            lines.append(f"| {label} | {len(each)} | {mean:+.2f} | {shown} | {low:+.2f} to {high:+.2f} |")
        lines += ["", *_offsets(own), "", *_dilation(own), "", *_receptive(own), "", *_claim_rows(own), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _differences(name: str, runs: list[dict[str, Any]], draws: Draws) -> Iterator[list[Any]]:
    import numpy as np

    from deformscope.metrics import bootstrap

    for over in dict.fromkeys(run["arm"] for run in runs if run["recipe"] == name):
        under = _beside(over)
        gaps = [] if under is None else list(paired(draws, name, over, under).values())
        if gaps:
            low, high = bootstrap.interval(np.mean([gap[1:] for gap in gaps], axis=0))
            each = [float(gap[0]) for gap in gaps]
            yield [f"{over} − {under}", each, statistics.fmean(each), low, high]


def _beside(arm: str) -> str | None:
    """The arm that this one is compared with: ``full`` for its variants, ``none`` for other modes."""
    if arm.endswith("none"):
        return None
    trunk, full, variant = arm.partition("full")
    if full:
        return f"{trunk}full" if variant else f"{trunk}none"
    return f"{arm.rpartition('-')[0]}-none" if "-" in arm else "none"


def _offsets(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "Root mean square of the offsets, cells, lowest layer first; the uppermost layer's after some steps."
    yield ""
    yield "| arm | seed | layers | while learning, uppermost |"
    yield "|---|---:|---|---|"
    for run in runs:
        if "rms" in run:
            layers = " / ".join(f"{value:.3f}" for value in run["rms"].values())
            growth = ", ".join(f"{step}: {list(one.values())[-1]:.3f}" for step, one in run["growth"].items())
            yield f"| {run['arm']} | {run['seed']} | {layers} | {growth} |"


def _dilation(runs: list[dict[str, Any]]) -> Iterator[str]:
    kinds = ("small", "medium", "large", "background")
    yield "Effective dilation of the uppermost layer that is measured, cells (1: no offsets), by what is at the cell."
    yield ""
    yield f"| arm | seed | {' | '.join(kinds)} |"
    yield "|---|---:|---:|---:|---:|---:|"
    for run in runs:
        if "dilation" in run:
            values = [f"{run['dilation'][kind]['mean']:.3f}" if kind in run["dilation"] else "–" for kind in kinds]
            yield f"| {run['arm']} | {run['seed']} | {' | '.join(values)} |"


def _receptive(runs: list[dict[str, Any]]) -> Iterator[str]:
    yield "Effective receptive field of the best detection's log-odds, means over photos."
    yield ""
    yield "| arm | seed | mass in its box | over chance | radius of 50 %, √area | of 95 % |"
    yield "|---|---:|---:|---:|---:|---:|"
    for run in runs:
        seen = run.get("receptive_field")
        if seen:
            values = [f"{seen[key]:.2f}" for key in ("share_in_box", "over_chance", "radius50", "radius95")]
            yield f"| {run['arm']} | {run['seed']} | {' | '.join(values)} |"


def _claim_rows(runs: list[dict[str, Any]]) -> Iterator[str]:
    if not any(run["claims"] for run in runs):
        return
    yield "The claims, of layers that are not dead, composed with up to two below. 95 % intervals over photos."
    yield ""
    yield f"| arm | seed | layer | photos | metric | offsets | {' | '.join(NULLS)} | verdict |"
    yield "|---|---:|---|---|---|---:|" + "---:|" * len(NULLS) + "---|"
    for run in runs:
        for row in run["claims"]:
            nulls = [f"{row['sources'][null][0]:.2f}" if _known(row, null) else "–" for null in NULLS]
            value, low, high = row["sources"]["field"]
            if value is None or low is None:  # circles are not defined where kernels narrow
                continue
            field = f"{value:.2f} [{low:.2f}, {high:.2f}]"
            layer = row["layer"].removeprefix("trunk.")
            cells = [run["arm"], str(run["seed"]), layer, VIEWS[row["view"]], row["metric"]]
            yield "| " + " | ".join([*cells, field, *nulls, row["verdict"]]) + " |"


def _known(row: dict[str, Any], null: str) -> bool:
    return null in row["sources"] and row["sources"][null][0] is not None


def _claims(scores: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in scores["parts"]:
        for row in part["rows"] if part["name"] in VIEWS else ():
            if row["figure"] in CLAIMS:
                kept = {key: row[key] for key in ("layer", "n", "sources", "gains", "verdict")}
                yield {"view": part["name"], "metric": row["figure"], **kept}

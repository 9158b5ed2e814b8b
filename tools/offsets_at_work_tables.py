"""Tables of the runs of offsets_at_work.py."""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from deformscope.detectors.dense.dense import STRIDES
from deformscope.metrics import bootstrap
from deformscope.training.ablation.ap_bootstrap import of_run
from deformscope.training.run.run_folder import RESULT

DOCS = Path(__file__).parents[1] / "docs/results"


def tables(folder: Path, arms: tuple[str, ...]) -> None:
    """Write what the finished runs measured, their means, and their differences; ``arms`` in this order."""
    runs, draws = [], {}
    for path in sorted(folder.glob(f"*/*/{RESULT}")):
        result = json.loads(path.read_text())
        arm, _, seed = path.parent.name.rpartition("-seed")
        field = path.parent / "field.json"
        scores = {key: result["scores"].get(key) for key in ("ap", "ap50", "ap75")}
        runs.append(
            {
                "recipe": path.parent.parent.name,
                "arm": arm,
                "seed": int(seed),
                "steps": result["steps"],
                "seconds": result["seconds"],
                **scores,
                "field": json.loads(field.read_text()) if field.exists() else {},
            }
        )
        kept = path.parent / "resampled.npy"
        if not kept.exists():
            np.save(kept, of_run(path.parent))
        draws[path.parent.parent.name, arm, int(seed)] = np.load(kept)
    (DOCS / "offsets_at_work_runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    (DOCS / "offsets_at_work_runs.md").write_text(_markdown(runs, draws, arms))


DIFFERENCES = (
    ("D0-told", "D0"),
    ("D2-told", "D2"),
    ("D0-told2", "D0"),
    ("D2-told2", "D2"),
    ("D2", "D0"),
    ("D2", "D0c"),
    ("D2-told", "D0"),
    ("D0c-told", "D0c"),
    ("D4", "D0"),
    ("D4-told", "D4"),
    ("D2-shuffled", "D2"),
    ("D2-side", "D2"),
    ("D2-feature", "D2-none"),
    ("D2-kernel", "D2-none"),
    ("D2", "D2-none"),
    ("D2", "D2-kernel"),
    ("D0-feature", "D0-none"),
    ("D0-kernel", "D0-none"),
    ("D0", "D0-none"),
    ("D0", "D0-kernel"),
    ("D2-none", "D0-none"),
    ("D2-feature", "D0-feature"),
    ("D2-kernel", "D0-kernel"),
    ("D0-decay", "D0"),
    ("D2-decay", "D2"),
    ("D0-decay", "D0-told"),
    ("D2-decay", "D2-told"),
    ("D2-task0", "D2-told"),
    ("D2-task0.1", "D2-told"),
    ("D2-centre", "D2"),
    ("D2-extent", "D2"),
    ("D2-extent", "D2-told"),
    ("D2-long", "D0-long"),
)
INTERACTION = ("D2-told", "D2", "D0-told", "D0")


def _markdown(runs: list[dict[str, Any]], draws: dict[tuple[str, str, int], np.ndarray], known: tuple[str, ...]) -> str:
    lines = ["# Offsets at work: every run", "", "Written by `tools/offsets_at_work.py table`.", ""]
    for name in dict.fromkeys(run["recipe"] for run in runs):
        own = [run for run in runs if run["recipe"] == name]
        arms = [arm for arm in known if any(run["arm"] == arm for run in own)]
        steps = min(run["steps"] for run in own)
        longer = "" if max(run["steps"] for run in own) == steps else "; arms `long` 6000"
        lines += [f"## {name}, {steps} steps{longer}", ""]
        lines += ["| arm | seeds | AP | AP50 | AP75 | error, strides 8 / 16 / 32 | ρ, strides 8 / 16 / 32 |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|"]
        for arm in arms:
            of = [run for run in own if run["arm"] == arm]
            cells = [_spread([run[key] for run in of]) for key in ("ap", "ap50", "ap75")]
            fields = [" / ".join(_mean(of, stride, key) for stride in STRIDES) for key in ("error", "rho")]
            lines.append("| " + " | ".join([arm, str(len(of)), *cells, *fields]) + " |")
        still = [_mean(own, stride, "still") for stride in STRIDES]
        lines += ["", f"Not moving has an error of {' / '.join(still)}.", ""]
        lines += ["| difference of AP, paired by seed | seeds | mean | each seed | 95 % over photos |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for over, under in DIFFERENCES:
            seeds = _common(own, (over, under))
            if seeds:
                lines.append(
                    _difference(f"{over} − {under}", [draws[name, over, s] - draws[name, under, s] for s in seeds])
                )
        seeds = _common(own, INTERACTION)
        if seeds:
            gaps = [
                sum(sign * draws[name, arm, s] for sign, arm in zip((1, -1, -1, 1), INTERACTION, strict=True))
                for s in seeds
            ]
            lines.append(_difference("interaction (D2-told − D2) − (D0-told − D0)", gaps))
        lines += ["", "| arm | seed | AP | AP50 | AP75 | seconds |", "|---|---:|---:|---:|---:|---:|"]
        for run in sorted(own, key=lambda run: (arms.index(run["arm"]), run["seed"])):
            numbers = [f"{run[key]:.2f}" for key in ("ap", "ap50", "ap75")]
            lines.append("| " + " | ".join([run["arm"], str(run["seed"]), *numbers, f"{run['seconds']:.0f}"]) + " |")
        lines.append("")
    return "\n".join(lines)


def _common(runs: list[dict[str, Any]], arms: tuple[str, ...]) -> list[int]:
    return sorted(set.intersection(*({run["seed"] for run in runs if run["arm"] == arm} for arm in arms)))


def _difference(name: str, gaps: list[Any]) -> str:
    low, high = bootstrap.interval(np.mean([gap[1:] for gap in gaps], axis=0))
    each = ", ".join(f"{gap[0]:+.2f}" for gap in gaps)
    return f"| {name} | {len(gaps)} | {np.mean([gap[0] for gap in gaps]):+.2f} | {each} | {low:+.2f} to {high:+.2f} |"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def _mean(runs: list[dict[str, Any]], stride: int, key: str) -> str:
    values = [run["field"][str(stride)][key] for run in runs if str(stride) in run["field"]]
    values = [value for value in values if value is not None]
    return f"{statistics.fmean(values):.2f}".replace("0.", ".", 1) if values else "–"

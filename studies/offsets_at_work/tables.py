"""Tables of runs.json, which `run.py table` writes."""

import json
import statistics
from pathlib import Path
from typing import Any

STRIDES = (8, 16, 32)


def collect(folder: Path, arms: tuple[str, ...]) -> None:
    """Write what the finished runs measured and the differences of AP; ``arms`` in this order."""
    import numpy as np

    from deformscope.metrics import bootstrap
    from deformscope.training.run_folder import RESULT
    from deformscope.training.summary import of_run

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
    runs.sort(key=lambda run: (run["recipe"], arms.index(run["arm"]), run["seed"]))
    differences: dict[str, list[Any]] = {run["recipe"]: [] for run in runs}
    for name, found in differences.items():
        for label, signs in COMPARED.items():
            seeds = sorted(set.intersection(*({s for n, a, s in draws if (n, a) == (name, arm)} for arm in signs)))
            if seeds:
                gaps = [sum(sign * draws[name, arm, s] for arm, sign in signs.items()) for s in seeds]
                low, high = bootstrap.interval(np.mean([gap[1:] for gap in gaps], axis=0))
                each = [float(gap[0]) for gap in gaps]
                found.append([label, each, statistics.fmean(each), low, high])
    content = {"runs": runs, "differences": differences}
    Path(__file__).with_name("runs.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")


DIFFERENCES = (
    ("D0-told", "D0"),
    ("D2-told", "D2"),
    ("D0-told2", "D0"),
    ("D2-told2", "D2"),
    ("D2", "D0"),
    ("D2", "D0c"),
    ("D2-told", "D0"),
    ("D0c-told", "D0c"),
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
COMPARED: dict[str, dict[str, int]] = {f"{over} − {under}": {over: 1, under: -1} for over, under in DIFFERENCES}
COMPARED["interaction (D2-told − D2) − (D0-told − D0)"] = {"D2-told": 1, "D2": -1, "D0-told": -1, "D0": 1}


def markdown(content: dict[str, Any]) -> str:
    """All tables."""
    lines = ["# Offsets at work: every run", "", "Made of the study's `runs.json`.", ""]
    for name, differences in content["differences"].items():
        own = [run for run in content["runs"] if run["recipe"] == name]
        steps = min(run["steps"] for run in own)
        longer = "" if max(run["steps"] for run in own) == steps else "; arms `long` 6000"
        lines += [f"## {name}, {steps} steps{longer}", ""]
        lines += ["| arm | seeds | AP | AP50 | AP75 | error, strides 8 / 16 / 32 | ρ, strides 8 / 16 / 32 |"]
        lines += ["|---|---:|---:|---:|---:|---:|---:|"]
        for arm in dict.fromkeys(run["arm"] for run in own):
            of = [run for run in own if run["arm"] == arm]
            cells = [_spread([run[key] for run in of]) for key in ("ap", "ap50", "ap75")]
            fields = [" / ".join(_mean(of, stride, key) for stride in STRIDES) for key in ("error", "rho")]
            lines.append("| " + " | ".join([arm, str(len(of)), *cells, *fields]) + " |")
        still = [_mean(own, stride, "still") for stride in STRIDES]
        lines += ["", f"Not moving has an error of {' / '.join(still)}.", ""]
        lines += ["| difference of AP, paired by seed | seeds | mean | each seed | 95 % over photos |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for label, each, mean, low, high in differences:
            shown = ", ".join(f"{value:+.2f}" for value in each)
            lines.append(f"| {label} | {len(each)} | {mean:+.2f} | {shown} | {low:+.2f} to {high:+.2f} |")
        lines += ["", "| arm | seed | AP | AP50 | AP75 | seconds |", "|---|---:|---:|---:|---:|---:|"]
        for run in own:
            numbers = [f"{run[key]:.2f}" for key in ("ap", "ap50", "ap75")]
            lines.append("| " + " | ".join([run["arm"], str(run["seed"]), *numbers, f"{run['seconds']:.0f}"]) + " |")
        lines.append("")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2f}"


def _mean(runs: list[dict[str, Any]], stride: int, key: str) -> str:
    values = [run["field"][str(stride)][key] for run in runs if str(stride) in run["field"]]
    values = [value for value in values if value is not None]
    return f"{statistics.fmean(values):.2f}".replace("0.", ".", 1) if values else "–"

"""Tables of an ablation: means, spread over seeds and paired differences, beside the paper's Table 1.

Runs of one seed share initial weights and data, so differences within a seed have less noise. The interval of a mean
difference is a bootstrap over seeds (Efron, 1979). It is too narrow with few seeds, so there is also Student's
interval, which assumes normal differences, and one over photos for the given seeds.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...detectors.offset_mode import OFFSET_MODES, OffsetMode
from ...errors import DeformscopeError
from ...files import write_json, write_text
from ...metrics import bootstrap
from ..run.run_folder import Result

NAMES = {"none": "none", "feature": "only d_f", "kernel": "only d_k", "full": "both"}
PAPER = {
    "Faster R-CNN, box": {"none": 37.4, "feature": 38.0, "kernel": 41.3, "full": 41.6},
    "Mask R-CNN, box": {"none": 38.2, "feature": 38.8, "kernel": 41.8, "full": 42.0},
    "Mask R-CNN, mask": {"none": 34.7, "feature": 35.1, "kernel": 37.5, "full": 37.6},
}
"""AP on COCO val2017 (Zhang et al., ICPRAM 2021, Table 1)."""
Resampled = Mapping[tuple[str, int], np.ndarray]
"""Resampled AP by mode and seed, from :func:`deformscope.training.ablation.ap_bootstrap.resampled`."""
RESAMPLES = 10_000
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""The 97.5 % quantile of Student's distribution with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """``over`` minus ``under`` for each seed."""

    over: str
    under: str
    mean: float
    bootstrap: tuple[float, float]
    """95 % interval over seeds, by bootstrap."""
    student: tuple[float, float] | None
    """95 % interval over seeds, Student's; None with one seed."""
    photos: tuple[float, float] | None
    """95 % interval over photos; None if it was not computed."""
    seeds: int


@dataclass(frozen=True)
class Summary:
    """One measure of all runs."""

    measure: str
    values: dict[str, dict[int, float]]
    """Mode, seed, value."""
    differences: list[Difference]

    def mean(self, mode: str) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values[mode].values())

    def spread(self, mode: str) -> float | None:
        """Standard deviation over seeds; None with one."""
        values = list(self.values[mode].values())
        return statistics.stdev(values) if len(values) > 1 else None


def summarise(results: Sequence[Result], measure: str = "ap", resampled: Resampled | None = None) -> Summary:
    """Means and paired differences: each mode against ``none``, and ``full`` against ``kernel`` and ``feature``.

    ``resampled`` holds the measure of each run on samples of photos, the same samples for all runs.
    """
    values: dict[str, dict[int, float]] = {}
    for mode in OFFSET_MODES:
        own = {r.seed: r.scores.get(measure) for r in results if r.offset_mode == mode}
        known = {seed: value for seed, value in own.items() if value is not None}
        if known:
            values[mode] = known
    if not values:
        raise DeformscopeError(f"measure={measure!r}: no run has it; expected one of {', '.join(results[0].scores)}")
    pairs: list[tuple[OffsetMode, OffsetMode]] = [(mode, "none") for mode in OFFSET_MODES if mode != "none"]
    pairs += [("full", "feature"), ("full", "kernel"), ("kernel", "feature")]
    differences = [_difference(values, resampled or {}, *pair) for pair in pairs if set(pair) <= values.keys()]
    return Summary(measure, values, [one for one in differences if one is not None])


def _difference(values: dict[str, dict[int, float]], resampled: Resampled, over: str, under: str) -> Difference | None:
    seeds = sorted(values[over].keys() & values[under].keys())
    if not seeds:
        return None
    gaps = np.array([values[over][seed] - values[under][seed] for seed in seeds])
    random = np.random.default_rng(0)
    means = gaps[random.integers(0, len(gaps), (RESAMPLES, len(gaps)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    student = None
    if len(gaps) > 1:
        freedom = len(gaps) - 1
        reach = (STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.4 / freedom) * gaps.std(ddof=1)
        reach /= math.sqrt(len(gaps))
        student = float(gaps.mean() - reach), float(gaps.mean() + reach)
    photos = None
    if all((mode, seed) in resampled for mode in (over, under) for seed in seeds):
        drawn = np.mean([resampled[over, seed] - resampled[under, seed] for seed in seeds], axis=0)
        photos = bootstrap.interval(drawn[1:])
    return Difference(over, under, float(gaps.mean()), (float(low), float(high)), student, photos, len(gaps))


def markdown(results: Sequence[Result], command: str = "", resampled: Resampled | None = None) -> str:
    """The tables as a Markdown document."""
    shown = [m for m in ("ap", "ap50", "ap75", "mask_ap") if results[0].scores.get(m) is not None]
    main = [summarise(results, m, resampled if m == "ap" else None) for m in shown]
    modes = list(main[0].values)
    lines = [f"# {results[0].name}: which part of the offsets earns the AP", ""]
    if command:
        lines += [f"    {command}", ""]
    lines += [_row("", *(NAMES[mode] for mode in modes)), _row("---", *("---:" for _ in modes))]
    for summary in main:
        cells = [_with_spread(summary.mean(mode), summary.spread(mode)) for mode in modes]
        lines.append(_row(summary.measure.replace("ap", "AP"), *cells))
    for name, figures in PAPER.items():
        lines.append(_row(f"paper: {name} (COCO)", *(f"{figures[mode]:.1f}" for mode in modes)))
    at_test_time = results[0].seed < 0
    if at_test_time:
        lines += ["", "One trained detector, whose offsets are replaced at test time.", ""]
        return "\n".join(lines)
    lines += ["", "Percent; mean ± standard deviation over seeds. Paired differences of AP:", ""]
    heads = ("", "mean", "95 % over seeds, bootstrap", "95 % over seeds, Student", "95 % over photos", "seeds")
    lines += [_row(*heads), _row("---", *["---:"] * 5)]
    for one in main[0].differences:
        name = f"{NAMES[one.over]} − {NAMES[one.under]}"
        intervals = [_interval(one.bootstrap), _interval(one.student), _interval(one.photos)]
        lines.append(_row(name, f"{one.mean:+.2f}", *intervals, str(one.seeds)))
    lines += ["", "Every run:", "", _row("mode", "seed", "steps", "seconds", "AP", "AP50", "AP75")]
    lines.append(_row("---", *["---:"] * 6))
    for run in results:
        cells = [_number(run.scores.get(name), 2) for name in ("ap", "ap50", "ap75")]
        lines.append(_row(run.offset_mode, str(run.seed), str(run.steps), f"{run.seconds:.0f}", *cells))
    return "\n".join([*lines, "", f"Hardware: {'; '.join(sorted({run.hardware for run in results}))}.", ""])


def table_csv(results: Sequence[Result]) -> str:
    """All runs as CSV, one row per run."""
    out = io.StringIO()
    measures = list(results[0].scores)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["offset_mode", "seed", "steps", "seconds", *measures])
    for run in results:
        writer.writerow([run.offset_mode, run.seed, run.steps, run.seconds, *(run.scores.get(m) for m in measures)])
    return out.getvalue()


def write(
    results: Sequence[Result],
    folder: Path,
    *,
    name: str = "ablation",
    command: str = "",
    resampled: Resampled | None = None,
) -> list[Path]:
    """Write ``NAME.md``, ``.csv``, ``.json`` and ``.png`` to ``folder``."""
    if not results:
        raise DeformscopeError("results=[]: expected at least one finished run")
    from .plot import plot

    folder.mkdir(parents=True, exist_ok=True)
    measures = [name for name, value in results[0].scores.items() if value is not None]
    summaries = [summarise(results, m, resampled if m == "ap" else None) for m in measures]
    content = {
        "command": command,
        "runs": [asdict(run) for run in results],
        "summaries": [asdict(one) for one in summaries],
        "paper": PAPER,
    }
    write_text(folder / f"{name}.md", markdown(results, command, resampled))
    write_text(folder / f"{name}.csv", table_csv(results))
    write_json(folder / f"{name}.json", content)
    plot(summarise(results), folder / f"{name}.png")
    return [folder / f"{name}.{ending}" for ending in ("md", "csv", "json", "png")]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:+.2f} … {ends[1]:+.2f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"

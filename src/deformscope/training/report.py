"""The files of an ablation: tables as Markdown and CSV beside the paper's Table 1, all numbers, and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from ..detectors.options import OFFSET_MODES
from ..draw.sheet import save
from ..draw.style import BOX, FAINT, INK, own_settings
from ..errors import DeformscopeError
from ..files import write_json, write_text
from .run_folder import Result
from .summary import NAMES, PAPER, Resampled, Summary, summarise


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


def markdown(results: Sequence[Result], command: str = "", resampled: Resampled | None = None) -> str:
    """The tables as a Markdown document."""
    shown = [m for m in ("ap", "ap50", "ap75", "mask_ap") if results[0].scores.get(m) is not None]
    main = [summarise(results, m, resampled if m == "ap" else None) for m in shown]
    modes = list(main[0].values)
    lines = [f"# {results[0].name}: which part of the offsets improves AP", ""]
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


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def _interval(ends: tuple[float, float] | None) -> str:
    return "–" if ends is None else f"{ends[0]:+.2f} … {ends[1]:+.2f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


@own_settings()
def plot(summary: Summary, path: Path) -> Path:
    """Left, this ablation: a thin line per seed, and the mean; right, the paper's AP on COCO."""
    figure = Figure(figsize=(8.4, 3.4), facecolor="white", layout="constrained")
    own, paper = figure.subplots(1, 2)
    modes = [mode for mode in OFFSET_MODES if mode in summary.values]
    places = {mode: place for place, mode in enumerate(modes)}
    for seed in sorted({seed for values in summary.values.values() for seed in values}):
        line = [(places[mode], summary.values[mode][seed]) for mode in modes if seed in summary.values[mode]]
        own.plot(*zip(*line, strict=True), color=FAINT, linewidth=0.8, marker="o", markersize=3, alpha=0.7)
    own.plot([places[m] for m in modes], [summary.mean(m) for m in modes], color=BOX, linewidth=2.2, label="mean")
    own.set_title("this ablation: a line per seed, and their mean", fontsize=9, color=INK)
    own.legend(frameon=False, fontsize=8)
    for (name, figures), style in zip(PAPER.items(), ("-", "--", ":"), strict=True):
        paper.plot([places[m] for m in modes], [figures[m] for m in modes], style, color=INK, marker="o", label=name)
    paper.set_title("the paper, COCO", fontsize=9, color=INK)
    paper.legend(frameon=False, fontsize=8)
    for ax in (own, paper):
        ax.set_xticks(range(len(modes)), [NAMES[mode] for mode in modes])
        ax.set_ylabel("AP, %")
        ax.spines[["top", "right"]].set_visible(False)
    return save(figure, path)

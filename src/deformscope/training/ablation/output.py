"""The files of an ablation: its tables, all numbers, and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...errors import DeformscopeError
from ...files import write_json, write_text
from ..run.run_folder import Result
from .plot import plot
from .summary import PAPER, Resampled, summarise
from .table import markdown, table_csv


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

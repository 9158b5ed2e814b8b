"""Commands that train: a recipe, or the ablation of the offsets."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from ..detectors.options import OFFSET_MODES, OffsetMode
from .app import app, console

Recipe = Annotated[
    str, Parameter(help="Name of a recipe, such as `shapes` or `table1_coco/faster_full`, or a YAML file.")
]
Overrides = Annotated[str, Parameter(help="Changes to the recipe as KEY=VALUE, such as `optimiser.lr=0.01`.")]
RunFolder = Annotated[Path | None, Parameter(name="--out", help="Folder of the run. [default: runs/NAME]")]


@app.command
def train(recipe: Recipe, /, *overrides: Overrides, folder: RunFolder = None) -> int:
    """Train a detector as a recipe says. To resume an interrupted run, repeat the command."""
    from ..training.reading import read
    from ..training.run import train as run

    chosen = read(recipe, overrides)
    folder = folder or Path("runs") / chosen.name
    result = run(chosen, folder)
    table = Table(title=f"{chosen.name}, {result.offset_mode}, seed {result.seed}, {result.steps} steps")
    for heading in ("measure", "percent"):
        table.add_column(heading, justify="right" if heading == "percent" else "left")
    for name, value in result.scores.items():
        table.add_row(name, "–" if value is None else f"{value:.1f}")
    console().print(table)
    print(folder)
    return 0


@app.command
def ablate(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    modes: Annotated[
        tuple[OffsetMode, ...],
        Parameter(consume_multiple=True, help="Offset modes to compare. [default: all]", show_default=False),
    ] = OFFSET_MODES,
    seeds: Annotated[int, Parameter(help="Number of seeds, each a run per mode.")] = 3,
    jobs: Annotated[int, Parameter(help="Runs at the same time, which share the CPU's threads.")] = 1,
    at_test_time: Annotated[
        str | None,
        Parameter(help="Do not train; change the offsets of this trained detector (folder of a run, name or file)."),
    ] = None,
    folder: RunFolder = None,
) -> int:
    """Compare the AP of detectors that use all offsets, only d_f, only d_k or none, each trained with several seeds."""
    from ..training import ablation, report, summary
    from ..training.reading import read

    chosen = read(recipe, overrides)
    folder = folder or Path("runs") / chosen.name
    wanted = ablation.checked(modes)
    if at_test_time is None:
        results = ablation.ablate(chosen, folder, modes=wanted, seeds=seeds, jobs=jobs, report=print)
        name, resampled = "ablation", summary.of_runs(chosen, folder, results)
    else:
        _, detector = ablation.trained(at_test_time)
        results = ablation.at_test_time(chosen, detector, modes=wanted, report=print)
        name, resampled = "at_test_time", None
    command = shlex.join(["deformscope", *sys.argv[1:]])
    for file in report.write(results, folder, name=name, command=command, resampled=resampled):
        print(file)
    return 0

"""Commands that train: one recipe, or the whole ablation of Table 1."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from .app import app, console

Recipe = Annotated[str, Parameter(help="A recipe's name (`shapes`, `table1_coco/faster_full`) or a YAML file.")]
Overrides = Annotated[str, Parameter(help="KEY=VALUE in YAML, such as optimiser.lr=0.01.")]
RunFolder = Annotated[Path | None, Parameter(help="Folder of the run; by default runs/NAME.")]


@app.command
def train(recipe: Recipe, /, *overrides: Overrides, out: RunFolder = None) -> int:
    """Train a detector by a recipe; the same command goes on where it was broken off."""
    from ..training.recipe.reading import read
    from ..training.run.train import train as run

    chosen = read(recipe, overrides)
    folder = out or Path("runs") / chosen.name
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
        list[str] | None, Parameter(consume_multiple=True, help="Some of none, feature, kernel, full; by default all.")
    ] = None,
    seeds: Annotated[int, Parameter(help="Runs of each mode.")] = 3,
    jobs: Annotated[int, Parameter(help="Runs at a time, each with its share of the CPU's threads.")] = 1,
    at_test_time: Annotated[
        str | None,
        Parameter(help="Train nothing: replace the offsets of this trained detector (a run's folder, a name or file)."),
    ] = None,
    out: RunFolder = None,
) -> int:
    """Which part of the offsets earns the AP: train every offset mode on every seed, and write the table."""
    from ..training.ablation import ap_bootstrap as photos, experiment as room, table
    from ..training.recipe.reading import read

    chosen = read(recipe, overrides)
    folder = out or Path("runs") / chosen.name
    wanted = room.checked(modes or room.OFFSET_MODES)
    if at_test_time is None:
        results = room.ablate(chosen, folder, modes=wanted, seeds=seeds, jobs=jobs, report=print)
        name, resampled = "ablation", photos.of_runs(chosen, folder, results)
    else:
        _, detector = room.trained(at_test_time)
        results, name, resampled = room.at_test_time(chosen, detector, modes=wanted, report=print), "at_test_time", None
    command = shlex.join(["deformscope", *sys.argv[1:]])
    for file in table.write(results, folder, name=name, command=command, resampled=resampled):
        print(file)
    return 0

"""Commands that measure: the paper's claims on annotated photos, and the health of a model's offsets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .app import Detector, Layers, app, console, progress


@app.command
def score(
    data: Annotated[Path, Parameter(help="Folder in COCO's layout, or one of its annotation files.")],
    /,
    *,
    detector: Detector = "packaged",
    layer: Layers = None,
    composed: Annotated[
        bool, Parameter(help="See each layer and the up to two below it as one field.", negative=())
    ] = False,
    limit: Annotated[int | None, Parameter(help="So many photos, of a fixed random order.")] = None,
    split: Annotated[str, Parameter(help="annotations/instances_SPLIT….json and SPLIT…/.")] = "val",
    out: Annotated[Path, Parameter(help="Folder for records, scores.json, tables.md and report.html.")] = Path(
        "deformscope-score"
    ),
    crops: Annotated[bool, Parameter(help="Measure off-centre crops too.")] = True,
    workers: Annotated[int | None, Parameter(help="Processes that compute figures (default: as many as pay).")] = None,
    seed: int = 0,
    device: Annotated[str, Parameter(help="cpu, cuda, …; under torchrun each process takes its own GPU.")] = "cpu",
) -> int:
    """Measure the paper's claims against their nulls: condensation, segmentation, size. Resumes."""
    from .. import load
    from ..score import Settings, score as measure
    from ..score.report.html import write_report
    from ..score.summary.tables import as_tables

    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    model = load(detector).to(device)
    helpers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
    settings = Settings(tuple(layer or ()), limit, split, crops, seed, workers=helpers, composed=composed)
    with progress() as bar:
        task = bar.add_task("photos", total=None)
        scores = measure(
            model,
            data,
            out,
            settings,
            progress=lambda state: bar.update(
                task, total=state.total, completed=state.done, description=str(state) or "photos"
            ),
        )
    if scores is None:  # another of torchrun's processes has the figures
        return 0
    for table in as_tables(scores):
        console().print(table)
    print(write_report(scores, model, data, out, settings))
    return 0


@app.command
def diagnose(
    photos: Annotated[list[Path], Parameter(help="Photos, or folders of photos.")],
    /,
    *,
    detector: Detector = "packaged",
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.")] = False,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")] = "cpu",
) -> int:
    """Look at the health of every deformable convolution's offsets; exit code 1 when something is broken."""
    from .. import load
    from ..health.diagnose import as_table, diagnose as examine
    from ..photo import find

    model = load(detector).to(device)
    found = examine(model, find(photos))
    if json_:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        console().print(as_table(found, f"{model.name}: offsets"))
    return int(found.broken)

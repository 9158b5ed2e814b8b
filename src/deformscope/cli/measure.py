"""Commands that measure: the paper's claims on annotated photos, and the health of a model's offsets."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ..terminal.progress import ProgressBar
from .app import POSITIVE, Broken, Composed, Data, Detector, Device, Layers, Split, app, complain, console


@app.command
def score(
    data: Data,
    /,
    *,
    detector: Detector = "packaged",
    layers: Layers = None,
    composed: Composed = False,
    max_photos: Annotated[
        int | None,
        Parameter(help="Number of photos, drawn at random by --seed. [default: all]", validator=POSITIVE),
    ] = None,
    split: Split = "val",
    out: Annotated[Path, Parameter(help="Output folder for records, scores.json, tables.md and report.html.")] = Path(
        "deformscope-score"
    ),
    crops: Annotated[bool, Parameter(help="Also measure on off-centre crops.", negative="--no-crops")] = True,
    masks: Annotated[
        bool,
        Parameter(
            help="Also measure the detector's masks, if it has any, beside filled boxes, ellipses, GrabCut (needs "
            "OpenCV) and the segments of offsets.",
            show_default=False,
        ),
    ] = False,
    workers: Annotated[
        int | None,
        Parameter(
            help="Processes that compute the metrics beside the detector's. [default: one less than cores, at most 8]",
            validator=Number(gte=0),
        ),
    ] = None,
    seed: Annotated[int, Parameter(help="Seed of the choice of photos and of the nulls.", validator=Number(gte=0))] = 0,
    broken: Broken = "refuse",
    device: Device = "cpu",
) -> int:
    """Measure the paper's claims on annotated photos and compare them with nulls.

    The claims: offsets gather on objects, their divergence segments objects, and the radius tells their size. An
    interrupted run resumes from its records. Under torchrun each process takes a share of the photos, and with --device
    cuda the GPU of its rank.
    """
    from .. import load
    from ..score import MaskSettings, Settings, measure_masks, score as measure, write_report
    from ..score.masks import masked, opencv
    from ..score.scenes import open_folder

    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    model = load(detector).to(device)
    if masks:
        opencv()  # reading a large folder takes longer than to say that it is missing
    photos = open_folder(data, split, seed, broken)
    of_masks = MaskSettings(max_photos=max_photos, seed=seed)
    with_masks = masked(photos, of_masks) if masks else None
    helpers = min(8, (os.cpu_count() or 1) - 1) if workers is None else workers
    settings = Settings(
        tuple(layers or ()), max_photos, split, crops, seed, workers=helpers, composed=composed, broken=broken
    )
    with ProgressBar("photos") as bar:
        scores = measure(
            model,
            photos,
            out,
            settings,
            progress=lambda state: bar.update(state.done, total=state.total, label=str(state) or "photos"),
        )
    if scores is None:  # under torchrun the first process has the scores
        return 0
    if with_masks is not None:
        with ProgressBar("masks") as bar:
            print(measure_masks(model, with_masks, out, of_masks, progress=lambda n, total: bar.update(n, total=total)))
    print(f"{scores}\n\nAll tables: {out / 'tables.md'}, all numbers: {out / 'scores.json'}, the report:")
    print(write_report(scores, out))
    return 0


@app.command
def diagnose(
    photos: Annotated[list[Path], Parameter(help="Photos, or folders of photos.")],
    /,
    *,
    detector: Detector = "packaged",
    json_: Annotated[bool, Parameter(name="--json", help="Print JSON instead of a table.", show_default=False)] = False,
    device: Device = "cpu",
) -> int:
    """Check every deformable convolution and attention for faults. The exit code is 1 if a layer is broken.

    A file that cannot be read is named on stderr and left out; the exit code is then 2, unless a layer is broken.
    """
    from .. import load
    from ..health.diagnose import diagnose as examine
    from ..health.report import as_table
    from ..photo import find

    model = load(detector).to(device)
    found = examine(model, find(photos))
    for problem in found.unreadable:
        complain(problem)
    if json_:
        # JSON's own escapes, where the output's encoding lacks a character.
        plain = not str(sys.stdout.encoding).lower().startswith("utf")
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=plain))
    else:
        console().print(as_table(found, f"{model.name}: offsets"))
    return 1 if found.broken else 2 if found.unreadable else 0

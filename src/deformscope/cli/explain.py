"""Commands that explain: a detection, and whether explanations are true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token
from cyclopts.validators import Number
from rich.table import Table

from ..errors import DeformscopeError
from ..terminal.progress import ProgressBar
from .app import POSITIVE, Detector, Device, Layers, app, console
from .look import XY, places

Output = Literal["score", "iou", "left", "top", "right", "bottom"]

PARTS: dict[str, Literal["feature", "kernel", "none"]] = {
    "only d_f": "feature",
    "only d_k": "kernel",
    "no offsets": "none",
}
"""Offset modes beside which full offsets are shown."""


def _place(kind: Any, tokens: tuple[Token, ...]) -> XY:
    return places(kind, tokens)[0]


@app.command
def explain(
    photo: Annotated[Path, Parameter(help="Photo to detect on.")],
    /,
    *,
    detector: Detector = "packaged",
    detection: Annotated[int, Parameter(help="Number of the detection, 0 the best.", validator=Number(gte=0))] = 0,
    at: Annotated[
        XY | None,
        Parameter(
            help="Place in photo px, as `120,80`: explain the best detection whose box holds it.",
            accepts_keys=False,
            converter=_place,
            n_tokens=1,
        ),
    ] = None,
    of: Annotated[
        Output, Parameter(help="Output to explain: the log-odds of the class, the IoU logit, or a side of the box.")
    ] = "score",
    layers: Layers = None,
    compare: Annotated[
        bool,
        Parameter(
            help="Draw also the receptive field with full offsets, only d_f, only d_k and no offsets side by side.",
            show_default=False,
        ),
    ] = False,
    min_score: Annotated[float, Parameter(help="Minimum score of detections.")] = 0.05,
    out: Annotated[Path, Parameter(help="Output file: PNG, SVG or PDF.")] = Path("deformscope-explanation.png"),
    dpi: Annotated[int, Parameter(help="Resolution of PNG files.", validator=Number(gte=20))] = 150,
    device: Device = "cpu",
) -> int:
    """Explain a detection: draw what each sampling point adds to it, and its receptive field."""
    from .. import draw, explain as why, load
    from ..draw.style import FORMATS

    if out.suffix.lower().lstrip(".") not in FORMATS:
        raise DeformscopeError(f"out={out}: expected a file ending in {', '.join(f'.{one}' for one in FORMATS)}")
    place = None if at is None else (at.y, at.x)
    explained = why(load(detector).to(device), photo, detection, of, at=place, layers=layers or (), min_score=min_score)
    console().print(_table(explained))
    files = [draw.save(draw.explanation(explained), out, dpi)]
    if compare:
        fields = {"full offsets": explained}
        for name, mode in PARTS.items():
            fields[name] = why(load(detector, offset_mode=mode).to(device), photo, explained.detection, of)
        beside = out.with_name(f"{out.stem}-receptive-fields{out.suffix}")
        files.append(draw.save(draw.receptive_field(fields), beside, dpi))
    for file in files:
        print(file)
    return 0


@app.command
def faithfulness(
    data: Annotated[Path, Parameter(help="Folder in COCO's layout, or one of its annotation files.")],
    /,
    *,
    detector: Detector = "packaged",
    max_photos: Annotated[
        int | None, Parameter(help="Number of photos with a detection. [default: all]", validator=POSITIVE)
    ] = None,
    split: Annotated[
        str, Parameter(help="Start of the split's name: annotations/instances_SPLIT*.json and photos in SPLIT*/.")
    ] = "val",
    min_score: Annotated[float, Parameter(help="Minimum score of the detections that are explained.")] = 0.3,
    seed: Annotated[int, Parameter(help="Seed of the random orders.", validator=Number(gte=0))] = 0,
    out: Annotated[Path | None, Parameter(help="JSON file for the records and areas. [default: none]")] = None,
    device: Device = "cpu",
) -> int:
    """Measure whether attributions are true: switch sampling points off and on in their order, nearest, and random.

    Explains the best detection of each photo. Areas under the curves of the class's probability and of the box's IoU,
    with 95 % intervals over photos.
    """
    from dataclasses import asdict

    from .. import load
    from ..files import write_json
    from ..score.faithfulness import as_table, measure, summarise

    model = load(detector).to(device)
    with ProgressBar("photos") as bar:
        records = measure(
            model,
            data,
            max_photos=max_photos,
            split=split,
            min_score=min_score,
            seed=seed,
            progress=lambda done, total: bar.update(done, total=total),
        )
    areas = summarise(records)
    console().print(as_table(areas))
    if out is not None:
        write_json(out, {"areas": [asdict(area) for area in areas], "photos": records})
        print(out)
    return 0


def _table(explained: Any) -> Table:
    """The layers on which the output depends: the strongest cell's points, and the strongest point."""
    score = float(explained.detection["scores"][0])
    box = ", ".join(f"{value:.0f}" for value in explained.box)
    field = explained.receptive_field
    table = Table(
        title=f"{explained.label} {score:.2f} in ({box}): {explained.of} {explained.value:+.2f}",
        title_justify="left",
        caption=(
            f"receptive field: radii {field.radius(0.5):.0f} and {field.radius(0.95):.0f} px hold 50 and 95 %; "
            f"{field.share_in(explained.box):.0%} in the box, {field.over_chance(explained.box):.1f} × chance"
        ),
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    for heading in ("all |attribution|", "strongest cell's sum", "strongest point", "at x, y"):
        table.add_column(heading, justify="right")
    for name, layer in explained.reached.items():
        y, x = layer.strongest_cell()
        index = int(layer.points.abs().argmax())
        place = layer.places().reshape(-1, 2)[index].tolist()
        table.add_row(
            name,
            f"{float(layer.points.abs().sum()):.2f}",
            f"{float(layer.points[:, :, y, x].sum()):+.2f}",
            f"{float(layer.points.reshape(-1)[index]):+.3f}",
            f"{place[1]:.0f}, {place[0]:.0f}",
        )
    return table

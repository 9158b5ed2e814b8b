"""Commands that explain: a detection, and whether explanations are true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter, Token
from cyclopts.validators import Number
from rich.table import Table

from ..errors import DeformscopeError
from ..terminal.progress import ProgressBar
from .app import POSITIVE, Data, Detector, Device, Fit, Layers, Split, app, console
from .look import XY, Format, places

Output = Literal["score", "iou", "left", "top", "right", "bottom"]

PARTS: dict[str, Literal["feature", "kernel", "none"]] = {
    "only d_f": "feature",
    "only d_k": "kernel",
    "no offsets": "none",
}
"""Offset modes beside which full offsets are shown."""


def _place(kind: Any, tokens: tuple[Token, ...]) -> XY:
    return places(kind, tokens)[0]


def _is_figure(_: Any, path: Path) -> None:
    if path.suffix.lower().lstrip(".") not in get_args(Format):
        raise ValueError(f"Expected a file ending in {', '.join(f'.{one}' for one in get_args(Format))}.")


@app.command
def explain(
    photo: Annotated[Path, Parameter(help="Photo to detect on.")],
    /,
    *,
    detector: Detector = "packaged",
    fit: Fit = None,
    detection: Annotated[int, Parameter(help="Number of the detection; 0 is the best.", validator=Number(gte=0))] = 0,
    at: Annotated[
        XY | None,
        Parameter(
            help="Place in photo px, as `120,80`: explain the best detection whose box contains it.",
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
            help="Also draw the receptive fields with full offsets, only d_f, only d_k and no offsets, side by side.",
            show_default=False,
        ),
    ] = False,
    min_score: Annotated[float, Parameter(help="Lowest score of detections.", validator=Number(gte=0, lte=1))] = 0.05,
    out: Annotated[Path, Parameter(help="Output file: PNG, SVG or PDF.", validator=_is_figure)] = Path(
        "deformscope-explanation.png"
    ),
    dpi: Annotated[int, Parameter(help="Resolution of PNG files.", validator=Number(gte=20))] = 150,
    device: Device = "cpu",
) -> int:
    """Explain a detection: draw what each sampling point adds to it, and its receptive field."""
    from .. import draw, explain as why, load
    from ..detectors.deform import DeformConv

    place = None if at is None else (at.y, at.x)
    loaded = load(detector, fit=fit).to(device)
    if compare and not any(isinstance(module, DeformConv) for module in loaded.modules()):
        raise DeformscopeError(f"--compare: {loaded.name} has no deformable convolution whose offsets could be split")
    explained = why(loaded, photo, detection, of, at=place, layers=layers or (), min_score=min_score)
    fields = {"full offsets": explained}
    for name, mode in PARTS.items() if compare else ():
        fields[name] = why(load(detector, offset_mode=mode).to(device), photo, explained.detection, of)
    console().print(_table(explained))
    for name, reason in explained.unexplained.items():
        print(f"captured, but not explained: {name} ({reason})")
    files = [draw.save(draw.explanation(explained), out, dpi)]
    if compare:
        beside = out.with_name(f"{out.stem}-receptive-fields{out.suffix}")
        files.append(draw.save(draw.receptive_field(fields), beside, dpi))
    for file in files:
        print(file)
    return 0


@app.command
def faithfulness(
    data: Data,
    /,
    *,
    detector: Detector = "packaged",
    max_photos: Annotated[
        int | None, Parameter(help="Number of photos with a detection. [default: all]", validator=POSITIVE)
    ] = None,
    split: Split = "val",
    min_score: Annotated[
        float, Parameter(help="Lowest score of the detections that are explained.", validator=Number(gte=0, lte=1))
    ] = 0.3,
    seed: Annotated[int, Parameter(help="Seed of the random orders.", validator=Number(gte=0))] = 0,
    out: Annotated[Path | None, Parameter(help="JSON file for the records and areas. [default: none]")] = None,
    device: Device = "cpu",
) -> int:
    """Measure how faithful attributions are, by switching sampling points off and on in their order.

    The order by attribution is compared with the order by distance and with random ones. For the best detection of each
    photo, the areas under the curves of the class's probability and of the box's IoU are measured, with 95 % intervals
    over photos.
    """
    from dataclasses import asdict

    from .. import load
    from ..files import write_json
    from ..score.faithfulness import as_tables, as_text, measure, summarise

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
    for table in as_tables(areas):
        console().print(table)
    print(as_text(areas))
    if out is not None:
        write_json(out, {"areas": [asdict(area) for area in areas], "photos": [asdict(record) for record in records]})
        print(out)
    return 0


def _said(of: str, value: float) -> str:
    """The explained output and its value, in words."""
    logits = {"score": "log-odds", "iou": "IoU logit"}
    return f"{logits[of]} {value:+.2f}" if of in logits else f"{of} side at {value:.1f} px"


def _table(explained: Any) -> Table:
    """The layers on which the output depends: the points of the strongest cell or query, and the strongest point."""
    score = float(explained.detection["scores"][0])
    box = ", ".join(f"{value:.0f}" for value in explained.box)
    field = explained.receptive_field
    table = Table(
        title=f"{explained.label} {score:.2f} in ({box}): {_said(explained.of, explained.value)}",
        title_justify="left",
        caption=(
            f"receptive field: radii {field.radius(0.5):.0f} and {field.radius(0.95):.0f} px hold 50 and 95 %; "
            f"{field.share_in(explained.box):.0%} in the box, {field.over_chance(explained.box):.1f} × chance"
        ),
        caption_justify="left",
    )
    table.add_column("layer", overflow="fold")
    whose = "query" if explained.attention else "cell"
    for heading in ("all |attribution|", f"strongest {whose}'s sum", "strongest point", "at x, y"):
        table.add_column(heading, justify="right")
    strongest = [(name, layer, layer.by_cell()[layer.strongest_cell()]) for name, layer in explained.reached.items()]
    strongest += [
        (name, layer, layer.by_query()[layer.strongest_query()]) for name, layer in explained.reached_attention.items()
    ]
    for name, layer, most in strongest:
        index = int(layer.points.abs().argmax())
        place = layer.places().reshape(-1, 2)[index].tolist()
        table.add_row(
            name,
            f"{float(layer.points.abs().sum()):.2f}",
            f"{float(most):+.2f}",
            f"{float(layer.points.reshape(-1)[index]):+.3f}",
            f"{place[1]:.0f}, {place[0]:.0f}",
        )
    return table

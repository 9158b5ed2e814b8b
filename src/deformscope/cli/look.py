"""Commands that draw: figures, layers, demo."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from cyclopts import Parameter, Token
from cyclopts.validators import Number
from rich.table import Table

from ..terminal.progress import ProgressBar
from .app import POSITIVE, Composed, Detector, Device, Fit, Layers, app, complain, console

View = Literal["figure1", "figure2", "figure3", "sampling", "overview", "segments", "queries"]
Format = Literal["png", "svg", "pdf"]


class XY(NamedTuple):
    """A place in photo px."""

    x: float
    y: float


def places(_: Any, tokens: tuple[Token, ...]) -> list[XY]:
    """The places that X,Y stand for."""
    found = []
    for token in tokens:
        try:
            x, y = (float(part) for part in token.value.split(","))
        except ValueError:
            raise ValueError(f'"{token.value}"; expected X,Y in photo px, such as 120,80') from None
        found.append(XY(x, y))
    return found


@app.command
def figures(
    photos: Annotated[list[Path], Parameter(help="Photos, or folders of photos.")],
    /,
    *,
    detector: Detector = "packaged",
    fit: Fit = None,
    layers: Layers = None,
    views: Annotated[
        list[View] | None,
        Parameter(
            name="--view", help="Figure to draw. Can be repeated. [default: all that the detector has, but segments]"
        ),
    ] = None,
    out: Annotated[Path, Parameter(help="Output folder.")] = Path("deformscope-figures"),
    format: Annotated[Format, Parameter(help="File format.")] = "png",
    at: Annotated[
        list[XY] | None,
        Parameter(
            help="Place in photo px, as `120,80`, whose sampling points are drawn. Can be repeated. "
            "[default: centres of detected boxes]",
            converter=places,
            n_tokens=1,
        ),
    ] = None,
    depth: Annotated[
        int,
        Parameter(help="Number of layers through which sampling points are followed.", validator=Number(gte=1, lte=3)),
    ] = 1,
    composed: Composed = False,
    cell_step: Annotated[
        int | None,
        Parameter(
            help="Draw every n-th cell along rows and columns. [default: as many as can be told apart]",
            validator=POSITIVE,
        ),
    ] = None,
    scale: Annotated[
        float | None,
        Parameter(help="Scale factor of arrows and circles. [default: chosen by the figure]", validator=Number(gt=0)),
    ] = None,
    group: Annotated[int, Parameter(help="Offset group, counted from 0.", validator=Number(gte=0))] = 0,
    head: Annotated[
        int | None,
        Parameter(
            help="Head of deformable attention, counted from 0. [default: all heads, by their weights]",
            validator=Number(gte=0),
        ),
    ] = None,
    min_score: Annotated[
        float, Parameter(help="Lowest score of drawn detections.", validator=Number(gte=0, lte=1))
    ] = 0.4,
    dpi: Annotated[int, Parameter(help="Resolution of PNG files.", validator=Number(gte=20))] = 150,
    jobs: Annotated[
        int, Parameter(help="Photos drawn at once, each in a process (of about 0.9 GB).", validator=POSITIVE)
    ] = 1,
    device: Device = "cpu",
) -> int:
    """Draw the paper's figures for photos.

    figure1: offsets of each kernel point; figure2: d_f and its divergence; figure3: d_k as circles; sampling: sampling
    points; overview: all of these on one sheet; segments: regions found from d_f; queries: sampling points of object
    queries, for detectors with deformable attention. Of an encoder's attention, figure2 and figure3 show the weighted
    mean and spread of each query's points.
    """
    from .. import load
    from ..draw.batch import Settings, check
    from ..photo import find

    settings = Settings(
        layers=tuple(layers or ()),
        views=tuple(views or ()),
        at=tuple(at or ()),
        depth=depth,
        composed=composed,
        cell_step=cell_step,
        scale=scale,
        group=group,
        head=head,
        min_score=min_score,
        format=format,
        dpi=dpi,
    )
    check(settings)
    return _draw(find(photos), load(detector, fit=fit).to(device), out, settings, jobs)


@app.command
def layers(
    photo: Annotated[Path | None, Parameter(help="Photo on which to measure the offsets.")] = None,
    /,
    *,
    detector: Detector = "packaged",
    fit: Fit = None,
    device: Device = "cpu",
) -> int:
    """List the deformable convolutions and attention of a detector and, given a photo, statistics of their offsets."""
    import numpy as np

    from .. import analyse, load

    blank = np.full((256, 320, 3), 127, dtype=np.uint8)
    analysis = analyse(load(detector, fit=fit).to(device), blank if photo is None else photo)
    title = f"{analysis.detector}" + (f" on {photo}" if photo else "")
    if analysis.fields:
        console().print(_convolutions(analysis.fields.values(), title, bool(photo)))
    if analysis.fields.attention:
        console().print(_attention(analysis.fields.attention.values(), title, bool(photo)))
    return 0


def _convolutions(fields: Iterable[Any], title: str, measured: bool) -> Table:
    """A row for each deformable convolution, with statistics of its offsets if ``measured``."""
    from ..fields.field import kernel_text, stride_text

    table = Table(title=title, title_justify="left")
    for heading in ("layer", "stride", "kernel", "groups", "modulated"):
        table.add_column(heading, overflow="fold")
    if measured:
        for heading in ("mean dy, dx", "median |offset|", "max |offset|"):
            table.add_column(heading, justify="right")
        table.caption = "offsets in cells of the layer's input; |offset|: lengths of the kernel points' offsets"
    for field in fields:
        row = [
            field.name,
            stride_text(field),
            kernel_text(field),
            str(field.offset.shape[1]),
            "yes" if field.modulation is not None else "no",
        ]
        if measured:
            mean = field.offset.mean(dim=(0, 1, 2, 3, 4)).tolist()
            length = field.offset.norm(dim=-1)
            row += [f"{mean[0]:+.3f}, {mean[1]:+.3f}", f"{length.median():.3f}", f"{length.max():.2f}"]
        table.add_row(*row)
    return table


def _attention(fields: Iterable[Any], title: str, measured: bool) -> Table:
    """A row for each call of deformable attention, with statistics of its points if ``measured``."""
    table = Table(title=title, title_justify="left")
    for heading in ("attention", "queries", "reference", "heads", "maps", "points per map"):
        table.add_column(heading, overflow="fold")
    if measured:
        for heading in ("weight per map", "median |displacement|", "median spread"):
            table.add_column(heading, justify="right")
        table.caption = "px of the network's input; displacement: of the points from the reference, by weight"
    for field in fields:
        _, queries, heads, _, _ = field.points.shape
        counts = [int((field.level == level).sum()) for level in range(len(field.level_sizes))]
        row = [
            field.name,
            f"{queries}, of all cells" if field.is_dense else f"{queries}",
            "boxes" if field.has_boxes else "points",
            str(heads),
            ", ".join(f"{height}×{width}" for height, width in field.level_sizes),
            str(counts[0]) if len(set(counts)) == 1 else ", ".join(map(str, counts)),
        ]
        if measured:
            mass = field.level_mass().mean(dim=(0, 1, 2)).tolist()
            away = (field.centre() - field.reference[..., :2]).norm(dim=-1)
            row += [
                " ".join(f"{share:.0%}" for share in mass),
                f"{away.median():.1f}",
                f"{field.spread().prod(dim=-1).sqrt().median():.1f}",
            ]
        table.add_row(*row)
    return table


@app.command
def demo(*, out: Annotated[Path, Parameter(help="Output folder.")] = Path("deformscope-demo")) -> int:
    """Draw all figures and the HTML page of a sample photo with the packaged detector. Downloads nothing."""
    import shutil

    import skimage.data

    from .. import analyse, explain, load
    from ..draw.batch import Settings, make_folder
    from ..explorer import write

    make_folder(out)
    photo = out / "cat.png"
    # The file itself, not skimage.data.chelsea(): that may go to the network for its registry.
    shutil.copyfile(Path(skimage.data.__file__).parent / "chelsea.png", photo)
    detector = load("packaged")
    # A head of the packaged detector looks through two deformable convolutions, which belong together.
    code = _draw([photo], detector, out, Settings(composed=True))
    whys = [{0: explain(detector, photo)}]
    print(write(out / "explore.html", [analyse(detector, photo).with_composed()], [photo.name], explanations=whys))
    return code


def _draw(photos: list[Path], detector: Any, out: Path, settings: Any, jobs: int = 1) -> int:
    import gc

    from ..draw.batch import MANIFEST, figures as draw

    # The libraries' million objects are not looked through again at each collection: 7 % of the time of a folder.
    gc.freeze()
    failed = 0
    with ProgressBar("photos", len(photos)) as bar:
        for outcome in draw(detector, photos, out, settings, jobs):
            bar.advance()
            if outcome.error:
                failed += 1
                complain(outcome.error)
            for file in outcome.files:
                print(file)
    if failed < len(photos):
        print(out / MANIFEST)
    return 2 if failed else 0

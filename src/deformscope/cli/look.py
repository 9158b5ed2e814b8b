"""Commands that show: figures, layers, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from ..errors import DeformscopeError
from .app import Detector, Layers, app, complain, console, progress


@app.command
def figures(
    photos: Annotated[list[Path], Parameter(help="Photos, or folders of photos.")],
    /,
    *,
    detector: Detector = "packaged",
    layer: Layers = None,
    view: Annotated[list[str] | None, Parameter(help="figure1 to figure3, sampling, overview, segments.")] = None,
    out: Annotated[Path, Parameter(help="Folder for the figures.")] = Path("deformscope-figures"),
    format: Annotated[str, Parameter(help="png, svg or pdf.")] = "png",
    at: Annotated[list[str] | None, Parameter(help="Place X,Y in photo px for the sampling points.")] = None,
    depth: Annotated[int, Parameter(help="Layers through which the sampling points are stacked, 1 to 3.")] = 1,
    composed: Annotated[
        bool, Parameter(help="See each layer and the up to two below it as one field.", negative=())
    ] = False,
    every: Annotated[int | None, Parameter(help="Draw each so-manieth cell (default: what can be read).")] = None,
    scale: Annotated[float | None, Parameter(help="Factor on arrows and circles (default: readable).")] = None,
    group: Annotated[int, Parameter(help="Offset group, from 0.")] = 0,
    least: Annotated[float, Parameter(help="Least score of the detections shown.")] = 0.4,
    dpi: Annotated[int, Parameter(help="Resolution of PNG figures.")] = 150,
) -> int:
    """Draw the paper's figures of photos: kernel points' fields (1), d_f and divergence (2), circles of d_k (3)."""
    from .. import load
    from ..draw.batch import VIEWS, Settings, check
    from ..photo import find

    settings = Settings(
        layers=tuple(layer or ()),
        views=tuple(view or VIEWS),
        at=tuple(_place(text) for text in at or ()),
        depth=depth,
        composed=composed,
        every=every,
        scale=scale,
        group=group,
        min_score=least,
        format=format,
        dpi=dpi,
    )
    check(settings)
    return _draw(find(photos), load(detector), out, settings)


@app.command
def layers(
    photo: Annotated[Path | None, Parameter(help="With a photo, the offsets' figures on it.")] = None,
    /,
    *,
    detector: Detector = "packaged",
) -> int:
    """List a detector's deformable convolutions: stride, reduction, kernel, groups and, on a photo, their offsets."""
    import numpy as np

    from .. import analyse, load

    blank = np.full((256, 320, 3), 127, dtype=np.uint8)
    analysis = analyse(load(detector), blank if photo is None else photo)
    table = Table(title=f"{analysis.detector}" + (f" on {photo}" if photo else ""), title_justify="left")
    for heading in ("layer", "stride", "reduction", "kernel", "groups", "modulated"):
        table.add_column(heading, overflow="fold")
    if photo:
        for heading in ("mean dy, dx", "median |offset|", "max |offset|"):
            table.add_column(heading, justify="right")
        table.caption = "offsets in cells of the layer's input; |offset| is each kernel point's length"
    for field in analysis.fields.values():
        row = [
            field.name,
            "×".join(map(str, field.stride)),
            f"{field.reduction[0]:g}",
            "×".join(map(str, field.kernel_size)),
            str(field.offset.shape[1]),
            "yes" if field.modulation is not None else "no",
        ]
        if photo:
            mean = field.offset.mean(dim=(0, 1, 2, 3, 4)).tolist()
            length = field.offset.norm(dim=-1)
            row += [f"{mean[0]:+.3f}, {mean[1]:+.3f}", f"{length.median():.3f}", f"{length.max():.2f}"]
        table.add_row(*row)
    console().print(table)
    return 0


@app.command
def demo(*, out: Annotated[Path, Parameter(help="Folder for what is made.")] = Path("deformscope-demo")) -> int:
    """Draw every figure of a public-domain photo, and its page to explore, with the packaged detector: no download."""
    import shutil

    import skimage.data

    from .. import analyse, load
    from ..draw.batch import Settings, make_folder
    from ..explorer import write

    make_folder(out)
    photo = out / "cat.png"
    # The file itself, not skimage.data.chelsea(): that may go to the network for its registry.
    shutil.copyfile(Path(skimage.data.__file__).parent / "chelsea.png", photo)
    detector = load("packaged")
    # A head of the packaged detector looks through two deformable convolutions, which belong together.
    code = _draw([photo], detector, out, Settings(composed=True))
    print(write(out / "explore.html", [analyse(detector, photo).with_composed()], [photo.name]))
    return code


def _draw(photos: list[Path], detector: Any, out: Path, settings: Any) -> int:
    from ..draw.batch import MANIFEST, figures as draw

    failed = 0
    with progress() as bar:
        task = bar.add_task("photos", total=len(photos))
        for outcome in draw(detector, photos, out, settings):
            bar.advance(task)
            if outcome.error:
                failed += 1
                complain(outcome.error)
            for file in outcome.files:
                print(file)
    print(out / MANIFEST)
    return 2 if failed else 0


def _place(text: str) -> tuple[float, float]:
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise DeformscopeError(f"--at {text}: expected X,Y in photo px, such as --at 120,80") from None
    return x, y

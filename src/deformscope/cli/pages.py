"""Commands that make interactive pages: explore, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from ..errors import DeformscopeError
from ..terminal.progress import track
from .app import DETECTOR_HELP, Detector, Device, Fit, app, complain


@app.command
def explore(
    photos: Annotated[list[Path], Parameter(help="Photos, or folders of photos.")],
    /,
    *,
    detector: Detector = "packaged",
    fit: Fit = None,
    composed: Annotated[
        bool,
        Parameter(help="Also show each layer composed with up to two layers below it.", show_default=False),
    ] = False,
    explained: Annotated[
        int,
        Parameter(
            name="--explain",
            help="Number of detections per photo, best first, whose sampling points' attributions are included.",
            validator=Number(gte=0),
        ),
    ] = 0,
    out: Annotated[Path, Parameter(help="HTML file to write.")] = Path("deformscope.html"),
    device: Device = "cpu",
) -> int:
    """Write an HTML page to explore the offsets on photos interactively. The page is one file and works offline."""
    from .. import analyse, explain, load
    from ..explorer import write
    from ..photo import find

    found = find(photos)
    loaded = load(detector, fit=fit).to(device)
    analyses, titles, whys, failed = [], [], [], 0
    for photo in track(found, "photos", len(found)):
        try:
            analysis = analyse(loaded, photo)
            best = range(min(explained, len(analysis.detection["boxes"])))
            whys.append({number: explain(loaded, photo, number) for number in best})
            analyses.append(analysis.with_composed() if composed else analysis)
            titles.append(photo.name)
        except DeformscopeError as error:
            failed += 1
            complain(str(error))
    if analyses:
        print(write(out, analyses, titles, explanations=whys))
    return 2 if failed else 0


@app.command
def serve(
    *,
    detectors: Annotated[
        list[str] | None,
        Parameter(
            name="--detector",
            help=f"{DETECTOR_HELP} Can be repeated, to offer several. [default: packaged]",
        ),
    ] = None,
    port: Annotated[int, Parameter(help="Port on 127.0.0.1.", validator=Number(gte=1, lte=65535))] = 7860,
) -> int:
    """Run a local web app to explore the offsets on photos that you upload. Needs deformscope[serve]."""
    from ..explorer.serve import run

    run(tuple(detectors or ("packaged",)), port)
    return 0

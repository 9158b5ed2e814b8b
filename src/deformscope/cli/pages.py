"""Commands that make pages to explore by hand: explore, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..errors import DeformscopeError
from .app import Detector, app, complain, progress


@app.command
def explore(
    photos: Annotated[list[Path], Parameter(help="Photos, or folders of photos.")],
    /,
    *,
    detector: Detector = "packaged",
    composed: Annotated[
        bool, Parameter(help="Show what each layer and the up to two below it make, too.", negative=())
    ] = False,
    out: Annotated[Path, Parameter(help="The HTML file.")] = Path("deformscope.html"),
) -> int:
    """Write one self-contained HTML page in which the photos' offsets can be explored by hand, offline."""
    from .. import analyse, load, segments
    from ..explorer import write
    from ..photo import find

    found = find(photos)
    loaded = load(detector)
    analyses, titles, failed = [], [], 0
    with progress() as bar:
        for photo in bar.track(found, description="photos"):
            try:
                analysis = analyse(loaded, photo)
                analyses.append(analysis.with_composed() if composed else analysis)
                titles.append(photo.name)
            except DeformscopeError as error:
                failed += 1
                complain(str(error))
    if analyses:
        regions = [{name: segments(field) for name, field in one.fields.items()} for one in analyses]
        print(write(out, analyses, titles, segments=regions))
    return 2 if failed else 0


@app.command
def serve(
    *,
    detector: Annotated[
        list[str] | None, Parameter(help="Names or checkpoint files to choose from; may be repeated.")
    ] = None,
    port: Annotated[int, Parameter(help="Port on 127.0.0.1.")] = 7860,
) -> int:
    """Open a small local app: drop a photo, choose a detector, explore. Needs deformscope[serve]."""
    from ..explorer.serve import run

    run(tuple(detector or ("packaged",)), port)
    return 0

"""Commands about detectors: list them, measure their AP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from ..detectors.offset_mode import OffsetMode
from .app import POSITIVE, Detector, Device, app, console


@app.command
def detectors() -> int:
    """List the detectors that can be loaded by name, with their published AP on COCO val2017."""
    from ..detectors.download import cache_folder
    from ..detectors.zoo import COLUMNS, PACKAGED, rows

    table = Table(title="Detectors", title_justify="left", caption=f"kept in {cache_folder()}", caption_justify="left")
    for column in COLUMNS:
        table.add_column(
            column, justify="right" if column in ("box AP", "mask AP", "size") else "left", overflow="fold"
        )
    table.add_row(PACKAGED, "deformscope", "", "", "", "yes")
    for row in rows():
        table.add_row(*row)
    console().print(table)
    return 0


@app.command
def evaluate(
    *,
    data: Annotated[
        Path, Parameter(help="Folder in COCO's layout: annotations/instances_SPLIT.json and photos in SPLIT/.")
    ],
    detector: Detector = "packaged",
    split: Annotated[str | None, Parameter(help="Name of the split. [default: val2017, or else val]")] = None,
    max_photos: Annotated[
        int | None, Parameter(help="Number of photos, by ascending id. [default: all]", validator=POSITIVE)
    ] = None,
    batch: Annotated[int, Parameter(help="Photos per batch.", validator=POSITIVE)] = 4,
    offset_mode: Annotated[
        OffsetMode | None,
        Parameter(help="Use the whole offsets (full), only d_f (feature), only d_k (kernel), or none. [default: full]"),
    ] = None,
    device: Device = "cpu",
) -> int:
    """Measure the COCO AP of a detector, for boxes and, if it predicts them, masks."""
    from .. import load
    from ..metrics.evaluate import COLUMNS, evaluate as measure, locate, rows

    dataset = locate(data, split)
    model = load(detector, offset_mode=offset_mode).to(device)
    scores = measure(model, dataset, batch=batch, max_photos=max_photos)
    table = Table(title=f"{model.name} on {dataset.annotations}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for row in rows(scores):
        table.add_row(*row)
    console().print(table)
    return 0

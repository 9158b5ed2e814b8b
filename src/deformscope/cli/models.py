"""Commands about detectors: list them, measure their AP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from ..detectors.options import OffsetMode, Weights
from .app import POSITIVE, Broken, Data, Detector, Device, Split, app, console


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
    for name in PACKAGED:
        table.add_row(name, "deformscope", "", "", "", "yes")
    for row in rows():
        table.add_row(*row)
    console().print(table)
    return 0


@app.command
def evaluate(
    data: Data,
    *,
    detector: Detector = "packaged",
    split: Split = "val",
    classes: Annotated[
        list[str] | None,
        Parameter(help="Classes to average over. [default: all that have objects]", consume_multiple=True),
    ] = None,
    max_photos: Annotated[
        int | None, Parameter(help="Number of photos, by ascending id. [default: all]", validator=POSITIVE)
    ] = None,
    batch: Annotated[int, Parameter(help="Photos per batch.", validator=POSITIVE)] = 4,
    offset_mode: Annotated[
        OffsetMode | None,
        Parameter(help="Use the whole offsets (full), only d_f (feature), only d_k (kernel), or none. [default: full]"),
    ] = None,
    weights: Annotated[
        Weights,
        Parameter(help="For files that also hold an average of the weights: use the plain ones, or the average (ema)."),
    ] = "plain",
    broken: Broken = "refuse",
    device: Device = "cpu",
) -> int:
    """Measure the COCO AP of a detector, for boxes and, if it predicts them, masks, and of every class."""
    from .. import load
    from ..datasets.coco import read_coco
    from ..metrics.coco import COLUMNS, class_rows, evaluate as measure, rows, same_classes

    dataset = read_coco(data, split, broken=broken)
    model = load(detector, weights=weights, offset_mode=offset_mode).to(device)
    scores = measure(model, dataset, classes=classes or (), batch=batch, max_photos=max_photos)
    _print_table(f"{model.name} on {dataset.annotations}", COLUMNS, rows(scores))
    of_classes = class_rows(scores)
    _print_table("AP by class", ("class", *(score.kind for score in scores)), of_classes)
    known = same_classes(model.class_names, dataset.names)
    unknown = [row[0] for row in of_classes if row[0] not in known]
    if unknown:
        counts = "which counts" if len(unknown) == 1 else "which count"
        print(f"{model.name} does not know {', '.join(unknown)}, {counts} as 0; --classes chooses classes")
    return 0


def _print_table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    console().print(table)

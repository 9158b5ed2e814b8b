"""Commands about detectors: which there are, and how well one does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from ..detectors.offset_mode import OffsetMode
from .app import Detector, app, console


@app.command
def detectors() -> int:
    """List the published detectors that a name stands for, with their AP on COCO val2017 as published."""
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
    data: Annotated[Path, Parameter(help="Folder in COCO's layout: annotations/instances_SPLIT.json beside SPLIT/.")],
    detector: Detector = "packaged",
    split: Annotated[str | None, Parameter(help="Split's name (default: val2017, else val).")] = None,
    limit: Annotated[int | None, Parameter(help="Only the first so many photos.")] = None,
    batch: Annotated[int, Parameter(help="Photos at a time.")] = 4,
    offset_mode: Annotated[OffsetMode | None, Parameter(help="Part of the offsets that is used.")] = None,
    device: Annotated[str, Parameter(help="cpu, cuda, cuda:1, …")] = "cpu",
) -> int:
    """Measure a detector's COCO AP for boxes and, where there are any, masks."""
    from .. import load
    from ..metrics.evaluate import COLUMNS, evaluate as measure, locate, rows

    dataset = locate(data, split)
    model = load(detector, offset_mode=offset_mode).to(_device(device))
    scores = measure(model, dataset, batch=batch, most_photos=limit)
    table = Table(title=f"{model.name} on {dataset.annotations}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for row in rows(scores):
        table.add_row(*row)
    console().print(table)
    return 0


def _device(name: str) -> str:
    import torch

    from ..errors import DeformscopeError

    try:
        torch.zeros(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise DeformscopeError(
            f"--device {name}: not to be had here ({reason}); expected cpu or a CUDA device"
        ) from None
    return name

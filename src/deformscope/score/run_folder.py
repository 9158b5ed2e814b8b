"""The folder of a run: its description, records and scores, and the processes that share it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from ..errors import DeformscopeError
from ..files import sha256, write_json
from .measures.annotations import Photos
from .summary.columns import Record, read_records, table
from .summary.rows import VIEWS
from .summary.scores import Scores

FORMAT = "deformscope.score.1"
RUN, SCORES = "run.json", "scores.json"
WEIGHTS = "weights_sha256"
"""Of the file that the detector was loaded from, null where there is none; as model cards and manifests have it."""


def known_records(folder: Path, total: int) -> Iterator[Record]:
    """One record per photo, the first if there are several."""
    met: set[int] = set()
    for record in read_records(folder):
        if record["index"] < total and record["index"] not in met:
            met.add(record["index"])
            yield record


@contextmanager
def appending(path: Path) -> Iterator[TextIO]:
    """Open a file of lines for appending, and first end a line that was cut off when a run was killed."""
    cut = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        if cut:
            file.write("\n")
        yield file


def describe(detector: nn.Module, photos: Photos, settings: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to resume a run: weights, annotations, and the settings that affect metrics."""
    tensors = hashlib.sha256()
    for name, value in detector.state_dict().items():
        tensors.update(name.encode() + value.detach().cpu().float().numpy().tobytes())
    return {
        "format": FORMAT,
        "deformscope": version("deformscope"),
        "detector": str(getattr(detector, "name", type(detector).__name__)),
        WEIGHTS: getattr(detector, WEIGHTS, None),
        "tensors": tensors.hexdigest(),
        "annotations": photos.annotations.name,
        "annotations_sha256": sha256(photos.annotations),
        "data": photos.annotations.parent.parent.name,
        "photos": len(photos.images),
    } | settings


def read_scores(folder: Path | str) -> Scores:
    """The scores of a finished run, from its folder alone.

    Raises DeformscopeError where the folder holds none.

    Example:
        >>> read_scores("DIR").part("whole").photos
        2
    """
    path = Path(folder) / SCORES
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        views = {view: table(known_records(Path(folder), content["run"]["records"]), view) for view in VIEWS}
        return Scores.from_json(content, views)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeformscopeError(
            f"{path}: no scores of a finished run ({type(error).__name__}: {error}); score into that folder again"
        ) from None


def claim(folder: Path, run: dict[str, Any]) -> None:
    """Write the description of this run to the folder, or check that the folder has the same one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RUN
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if "weights" in before:  # its former name
                before["tensors"] = before.pop("weights")
            # Several files may hold the same tensors.
            other = [key for key in run | before if before.get(key) != run.get(key) and key != WEIGHTS]
            if other:
                raise DeformscopeError(
                    f"out={folder}: holds another run (its {', '.join(other)} differ); give another folder"
                )
        write_json(path, run)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        if isinstance(error, DeformscopeError):
            raise
        raise DeformscopeError(f"out={folder}: cannot be used ({error}); give another folder") from None


def process_group(world: int) -> AbstractContextManager[None]:
    """Join the other processes of torchrun for the duration of the run."""
    return nullcontext() if world < 2 else _joined()


@contextmanager
def _joined() -> Iterator[None]:
    from datetime import timedelta

    from torch import distributed

    # Gloo on any device, since there are only barriers. The timeout is long because one share may take much longer.
    distributed.init_process_group("gloo", timeout=timedelta(days=2))
    try:
        yield
    finally:
        distributed.destroy_process_group()


def wait(world: int) -> None:
    if world > 1:
        from torch import distributed

        distributed.barrier()

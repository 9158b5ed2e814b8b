"""The folder of a run: its description, records, scores and photos, and the processes that share it.

Which layer and which photos the report shows is known only at the end of a run. A photo that is among the best of all
is among the best of any subset, so each process keeps the best and worst of its share and deletes the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from ..analysis import Analysis
from ..errors import DeformscopeError
from ..fields.fields import Fields
from ..files import claimed_folder, sha256, write_json
from .records import Record, read_records, table
from .scenes import Photos
from .scores import VIEWS, Scores

FORMAT = "deformscope.score.1"
RUN, SCORES = "run.json", "scores.json"
WEIGHTS = "weights_sha256"
"""Of the file that the detector was loaded from, null where there is none; as model cards and manifests have it."""
FILE = "file"
"""The annotation file, with the dataset's folder."""
NAMES_ONLY = (WEIGHTS, FILE)
"""What may differ when a run is resumed: several files may hold the same tensors, and a dataset may move."""


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
        FILE: _below_its_folder(photos.annotations),
        "data": photos.annotations.parent.parent.name,
        "photos": len(photos.images),
    } | settings


def _below_its_folder(annotations: Path) -> str:
    """The annotation file as ``DATA/annotations/instances_val.json``, from the dataset's folder on."""
    parts = annotations.absolute().parts
    return "/".join(parts[-3 if annotations.absolute().parent.name == "annotations" else -2 :])


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
        views = {view: table(read_records(Path(folder), content["run"]["records"]), view) for view in VIEWS}
        return Scores.from_json(content, views)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeformscopeError(
            f"{path}: no scores of a finished run ({type(error).__name__}: {error}); score into that folder again"
        ) from None


def claimed(folder: Path, rank: int = 0) -> AbstractContextManager[None]:
    """The folder of a run, made and locked by the first process."""
    busy = f"out={folder}: another process measures into it; wait for it, or give another folder"
    return claimed_folder(folder, None if rank else busy)


def describe_in(folder: Path, run: dict[str, Any]) -> None:
    """Write the description of this run to the folder, or check that the folder has the same one."""
    path = folder / RUN
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else run
        other = [key for key in run | before if before.get(key) != run.get(key) and key not in NAMES_ONLY]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DeformscopeError(f"out={folder}: cannot be used ({error}); give another folder") from None
    if other:
        raise DeformscopeError(f"out={folder}: holds another run (its {', '.join(other)} differ); give another folder")
    write_json(path, run)


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


FOLDER = "photos"
SHOWN = 3
"""Photos shown of the best, and of the worst."""
AT_RANDOM = 12
"""The first photos in the random order, which are kept whatever their metrics."""


class Kept:
    """The photos that are kept in the folder of a run, updated with each record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.ranked: dict[tuple[str, bool, int], list[tuple[float, int]]] = {}
        """By layer, whether all objects have masks, and sign: the highest of sign · AUROC, with the photos' indices."""

    def add(self, record: Record, analysis: Analysis | None = None) -> None:
        """Rank a photo, and save its ``analysis`` if it is one to keep.

        Without an analysis only rank it, as for the photos of a run that is resumed, which have been saved already.
        """
        index, view = record.index, record.views.get("whole")
        if view is None:
            return
        layers, gone = set(), set()
        for layer, sources in view.layers.items():
            auroc = sources["field"].image["auroc"] if "field" in sources else math.nan
            if not math.isfinite(auroc):
                continue
            for sign in (1, -1):
                first = self.ranked.setdefault((layer, view.masked, sign), [])
                first.append((sign * auroc, -index))  # of equal ones the earlier
                first.sort(reverse=True)
                gone |= {-other for _, other in first[SHOWN:]}
                del first[SHOWN:]
                if (sign * auroc, -index) in first:
                    layers.add(layer.partition(":")[0])
        if analysis is not None and (layers or index < AT_RANDOM):
            _save(analysis, self.folder / _name(index), None if index < AT_RANDOM else layers)
        wanted = {-other for first in self.ranked.values() for _, other in first}
        for other in gone - wanted:
            if other >= AT_RANDOM:
                (self.folder / _name(other)).unlink(missing_ok=True)


def _save(analysis: Analysis, path: Path, layers: set[str] | None) -> None:
    # Half precision is enough for figures.
    fields = {
        name: replace(field, offset=field.offset.half(), modulation=None)
        for name, field in analysis.fields.items()
        if layers is None or name in layers
    }
    replace(analysis, fields=Fields(fields)).save(path)


def kept(folder: Path, index: int, layer: str) -> Analysis | None:
    """A photo that a run kept, with the field of ``layer``; None where it was not kept."""
    path = folder / FOLDER / _name(index)
    if not path.exists():
        return None
    analysis = Analysis.load(path)
    if layer not in analysis.fields:
        return None
    field = analysis.fields[layer]
    return replace(analysis, fields=Fields({layer: replace(field, offset=field.offset.float())}))


def _name(index: int) -> str:
    return f"{index:06}.safetensors"

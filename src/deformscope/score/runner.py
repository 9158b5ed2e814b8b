"""Measure a detector on an annotated folder, with several workers and processes, and resume interrupted runs.

A photo's record depends on nothing but the photo, its neighbour in the run's fixed random order and the settings: any
number of workers and processes gives the same records, and an interrupted run resumes where it stopped.

Which layer and which photos the report shows is known only at the end of a run. A photo that is among the best of all
is among the best of any subset, so each process keeps the best and worst of its share and deletes the others.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field as dataclass_field, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from ..analysis import Analysis
from ..datasets.coco import Broken
from ..errors import DeformscopeError
from ..fields.fields import Fields
from ..files import claimed_folder, sha256, write_json, write_text
from .passes import ForwardPasses, measured, probe
from .records import Record, View, read_records, table
from .scenes import Photos, Scene, open_folder
from .scores import VIEWS, Scores, as_markdown
from .summary import summarise

FORMAT = "deformscope.score.1"
RUN, SCORES = "run.json", "scores.json"
WEIGHTS = "weights_sha256"
"""Of the file that the detector was loaded from, null where there is none; as model cards and manifests have it."""
FILE = "file"
"""The annotation file, with the dataset's folder."""
NAMES_ONLY = (WEIGHTS, FILE)
"""What may differ when a run is resumed: several files may hold the same tensors, and a dataset may move."""


@dataclass
class Progress:
    """Progress of a run, for a progress bar.

    Example:
        >>> scores = score(detector, "DATA", "SHOWN", Settings(max_photos=1, crops=False, draws=40), progress=print)
        heads.stride...: AUROC ..., sink on object ...
    """

    total: int
    done: int = 0
    problems: int = 0
    sums: dict[str, list[float]] = dataclass_field(default_factory=dict)
    """For each layer: sums of AUROC and pointing game over the photos, and the number of photos."""

    def add(self, record: Record) -> None:
        """Add a photo's record."""
        self.done += 1
        self.problems += record.status not in ("scored", "no object")
        for layer, sources in record.views["whole"].layers.items() if "whole" in record.views else ():
            if "field" in sources and math.isfinite(sources["field"].image["auroc"]):
                image, sums = sources["field"].image, self.sums.get(layer, [0.0, 0.0, 0.0])
                self.sums[layer] = [sums[0] + image["auroc"], sums[1] + image["pointing"], sums[2] + 1]

    def __str__(self) -> str:
        """The layer with the best AUROC so far, and its metrics."""
        if not self.sums:
            return ""
        layer = max(self.sums, key=lambda name: self.sums[name][0] / self.sums[name][2])
        auroc, pointing, count = self.sums[layer]
        problems = f" · {self.problems} not scored" if self.problems else ""
        return f"{layer}: AUROC {auroc / count:.3f}, sink on object {pointing / count:.2f}{problems}"


@dataclass(frozen=True)
class Settings:
    """Settings of a run.

    Example:
        >>> Settings(layers=("*stride16*",), max_photos=200).split
        'val'
    """

    layers: tuple[str, ...] = ()
    """Patterns of layer names; all layers if empty."""
    max_photos: int | None = None
    """Number of photos, drawn at random by ``seed``; all if None."""
    split: str = "val"
    """``instances_<split>….json`` and ``<split>…/`` of the folder."""
    crops: bool = True
    """Also measure on off-centre crops."""
    seed: int = 0
    draws: int | None = None
    """Bootstrap draws; if None, 200 to 1000, depending on the number of objects."""
    workers: int = 0
    """Processes that compute metrics while the main process runs the detector; with 0 the main process does both."""
    composed: bool = False
    """Measure each layer together with up to two below it, as the one field that :func:`stack.composed` makes."""
    broken: Broken = "refuse"
    """What to do with broken annotations and photos: measure nothing, or leave them out."""


def score(
    detector: nn.Module,
    data: Path | str | Photos,
    out: Path | str,
    settings: Settings | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> Scores | None:
    """Measure the paper's claims on ``data`` (a COCO-layout folder, one of its annotation files, or
    :func:`.open_folder` of one).

    Records are written to ``out``, from which an interrupted run resumes. Metrics with intervals and nulls are computed
    from them and written to ``scores.json`` and ``tables.md``. ``progress`` is called after each photo. Under torchrun
    each process takes a share of the photos; only the first returns the scores, the others None.

    Raises DeformscopeError when the data cannot be used or ``out`` holds another run.

    Example:
        >>> scores = score(detector, "DATA", "DIR", Settings(max_photos=2, crops=False, draws=40))
        >>> scores.verdicts[0].answer
        'not shown'
    """
    chosen = settings or Settings()
    photos = open_folder(data, chosen.split, chosen.seed, chosen.broken)
    total = len(photos.images) if chosen.max_photos is None else min(chosen.max_photos, len(photos.images))
    if total < 1:
        raise DeformscopeError(f"{photos.annotations}: no photos to measure; check max_photos and split")
    probe(detector, chosen.layers, together=chosen.composed)  # raises, before anything is written
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    folder = Path(out)
    with process_group(world), claimed(folder, rank):
        kind = {"layers": list(chosen.layers), "crops": chosen.crops, "seed": chosen.seed}
        # Only present if layers are composed, so that folders of earlier versions, which lack it, can be resumed.
        kind |= {"composed": True} if chosen.composed else {}
        kind |= {"broken": chosen.broken} if chosen.broken != "refuse" else {}
        run = describe(detector, photos, kind)
        if rank == 0:
            describe_in(folder, run)
        wait(world)
        share = range(rank * total // world, (rank + 1) * total // world)
        state, known, kept = Progress(len(share)), set(), Kept(folder)
        for record in read_records(folder, total):
            if record.index in share:
                known.add(record.index)
                state.add(record)
                kept.add(record)
        if progress is not None:
            progress(state)
        todo = [index for index in share if index not in known]
        if todo:
            with appending(folder / f"records.{rank}.jsonl") as file:
                for record, analysis in records(detector, photos, todo, chosen):
                    kept.add(record, analysis)
                    file.write(record.line())
                    file.flush()
                    state.add(record)
                    if progress is not None:
                        progress(state)
        wait(world)
        if rank != 0:
            return None
        scores = summarise(lambda: read_records(folder, total), run | {"max_photos": total}, chosen.draws)
        write_json(folder / SCORES, scores.to_json())
        write_text(folder / "tables.md", as_markdown(scores.parts))
        return scores


def records(
    detector: nn.Module, photos: Photos, indices: Sequence[int], settings: Settings
) -> Iterator[tuple[Record, Analysis | None]]:
    """The records of the photos of these indices, in their order, with the fields that were measured."""
    passes = ForwardPasses(
        detector,
        photos,
        layers=settings.layers,
        crops=settings.crops,
        composed=settings.composed,
        seed=settings.seed,
    )
    waiting: deque[tuple[Record, Analysis | None, dict[str, Future[View]]]] = deque()
    ahead = 4 * max(settings.workers, 1)
    with _pool(settings.workers) as pool, ThreadPoolExecutor(1) as reader:
        read: deque[Future[Scene | str]] = deque()
        for place, index in enumerate(indices):
            while len(read) < 4 and place + len(read) < len(indices):
                read.append(reader.submit(photos.scene_or_reason, indices[place + len(read)]))
            record, tasks, analysis = passes.of_photo(index, read.popleft().result())
            if pool is None:
                yield replace(record, views={name: measured(task) for name, task in tasks.items()}), analysis
                continue
            waiting.append((record, analysis, {name: pool.submit(measured, task) for name, task in tasks.items()}))
            while len(waiting) > ahead:
                yield _collected(*waiting.popleft())
        while waiting:
            yield _collected(*waiting.popleft())


def _collected(
    record: Record, analysis: Analysis | None, futures: dict[str, Future[View]]
) -> tuple[Record, Analysis | None]:
    return replace(record, views={name: future.result() for name, future in futures.items()}), analysis


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if workers < 1:
        yield None
        return
    # Spawned, not forked: the detector may hold a GPU, which a forked process must not touch.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        yield pool


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


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


@contextmanager
def process_group(world: int) -> Iterator[None]:
    """Join the other processes of torchrun for the duration of the run."""
    if world < 2:
        yield
        return
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

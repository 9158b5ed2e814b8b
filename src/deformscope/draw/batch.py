"""Draw the figures of photos and write them to files, with a manifest from which the run can be repeated."""

from __future__ import annotations

import pickle
import platform
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field as dataclass_field
from functools import partial
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..analysis import Analysis, analyse
from ..errors import DeformscopeError
from ..fields.attention import AttentionField
from ..fields.field import OffsetField
from ..fields.moments import with_encoders
from ..fields.stack import DEEPEST, composed, upstream
from ..files import sha256, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..detectors.detector import Detector

VIEWS = ("figure1", "figure2", "figure3", "sampling", "overview")
"""The views of deformable convolutions that are drawn by default."""
ENCODER_VIEWS = ("figure2", "figure3")
"""Those of an encoder's deformable attention."""
QUERIES = "queries"
"""That of object queries."""
CHOICES = (*VIEWS, "segments", QUERIES)
MOST_QUERIES = 6
"""Detections, best first, whose queries are drawn."""
MANIFEST = "manifest.json"
MANIFEST_EVERY = 20
"""Photos between two writes of the manifest; it is written at the end, too."""
LIBRARIES = ("torch", "torchvision", "numpy", "matplotlib", "PIL")
LONGEST_NAME = 120


@dataclass(frozen=True)
class Settings:
    """Settings of a run: the options of the command line."""

    layers: tuple[str, ...] = ()
    """Patterns of layer names; empty for the last layer of each reduction, as in the paper."""
    views: tuple[str, ...] = ()
    """Empty for all but the segments, where the model has what they show."""
    at: tuple[tuple[float, float], ...] = ()
    """Places (x, y) in photo px for the sampling points; empty for the centres of detected boxes."""
    depth: int = 1
    composed: bool = False
    """Compose the offsets of each layer and of up to two layers below it into one field."""
    cell_step: int | None = None
    """Draw every n-th cell along rows and columns; None for as many as stay distinct."""
    scale: float | None = None
    group: int = 0
    head: int | None = None
    """Head of attention; None for all, by their weights."""
    min_score: float = 0.4
    format: str = "png"
    dpi: int = 150


@dataclass(frozen=True)
class Outcome:
    """The result for one photo: the files written, or an error."""

    photo: Path
    files: tuple[Path, ...] = ()
    error: str = ""


@dataclass
class Run:
    """A run of :func:`figures` and its photos so far."""

    out: Path
    detector: Detector
    settings: Settings
    photos: list[dict[str, Any]] = dataclass_field(default_factory=list)

    def add(self, one: Outcome) -> None:
        """Add a photo, its sha256 and what was drawn of it."""
        self.photos.append(
            {
                "path": str(one.photo),
                "sha256": None if one.error else sha256(one.photo),
                "files": [file.relative_to(self.out).as_posix() for file in one.files],
                "error": one.error or None,
            }
        )

    def write_manifest(self) -> Path:
        """Write input files (with sha256), detector, versions and settings to the manifest."""
        record = {
            "deformscope": version("deformscope"),
            "detector": self.detector.name,
            "weights_sha256": self.detector.weights_sha256,
            "settings": asdict(self.settings),
            # The modules' own versions, which include the build (2.14.1+cu130).
            "versions": {name: import_module(name).__version__ for name in LIBRARIES},
            "python": platform.python_version(),
            "photos": self.photos,
        }
        return write_json(self.out / MANIFEST, record, indent=2)


def figures(
    detector: Detector, photos: Sequence[Path], out: Path, settings: Settings, jobs: int = 1
) -> Iterator[Outcome]:
    """Draw the figures of every photo into its own folder in ``out``, and write the manifest; yields an outcome per
    photo, in their order. ``jobs`` photos are drawn at once, each in a process.

    A photo that cannot be used gives an outcome with an error, and the others follow. If nothing can be drawn, nothing
    is left in ``out``. Invalid settings raise DeformscopeError before anything is written.
    """
    check(settings)
    if jobs < 1:
        raise DeformscopeError(f"jobs={jobs}: expected a whole number from 1")
    new = not out.exists()
    make_folder(out)
    run = Run(out, detector, settings)
    tasks = [(photo, out / name) for photo, name in zip(photos, folder_names(photos, (MANIFEST,)), strict=True)]
    work = partial(_outcome, detector, settings)
    jobs = min(jobs, len(tasks))
    try:
        for outcome in in_processes(work, tasks, jobs) if jobs > 1 else map(work, tasks):
            run.add(outcome)
            if len(run.photos) % MANIFEST_EVERY == 0:
                run.write_manifest()
            yield outcome
    finally:  # also if the run is interrupted
        if any(photo["files"] for photo in run.photos):
            run.write_manifest()
        elif new:
            with suppress(OSError):  # somebody else put a file there
                out.rmdir()


def _outcome(detector: Detector, settings: Settings, task: tuple[Path, Path]) -> Outcome:
    photo, folder = task
    try:
        return Outcome(photo, tuple(draw_all(analyse(detector, photo), photo, folder, settings)))
    except DeformscopeError as error:
        return Outcome(photo, error=str(error))


def check(settings: Settings) -> None:
    """Raise DeformscopeError for settings that are invalid for every photo."""
    from .sheet import FORMATS

    choices = (("format", settings.format, tuple(FORMATS)), *(("views", view, CHOICES) for view in settings.views))
    for name, value, known in choices:
        if value not in known:
            raise DeformscopeError(f"{name}={value!r}: expected one of {', '.join(known)}")
    for name, least in (("cell_step", 1), ("depth", 1), ("dpi", 20), ("group", 0), ("head", 0)):
        number = getattr(settings, name)
        if number is not None and number < least:
            raise DeformscopeError(f"{name}={number}: expected a whole number from {least}")
    if settings.scale is not None and not settings.scale > 0:
        raise DeformscopeError(f"scale={settings.scale}: expected a factor above 0")


def make_folder(out: Path) -> None:
    """Make the output folder and check that it is writable. Raises DeformscopeError if not."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".deformscope-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DeformscopeError(
            f"out={out}: cannot be written to ({error.strerror or error}); give another folder"
        ) from None


@dataclass(frozen=True)
class Chosen:
    """The parts of an analysis to draw."""

    layers: list[OffsetField]
    """Of convolutions or, where there are none, of an encoder's attention; in the network's order."""
    decoder: dict[str, AttentionField]
    """The attention of object queries."""
    convolutions: bool
    """Whether the layers are convolutions."""


def chosen_layers(analysis: Analysis, patterns: Sequence[str], head: int | None = None) -> Chosen:
    """The layers that match the patterns; without patterns, the last of each reduction."""
    fields = with_encoders(analysis.fields, patterns, head)
    decoder = {name: one for name, one in fields.attention.items() if name in analysis.decoder}
    own = [field for name, field in fields.items() if name in analysis.fields]
    layers = own or list(fields.values())
    if not patterns:
        last = {field.reduction: number for number, field in enumerate(layers)}
        layers = [field for number, field in enumerate(layers) if number in last.values()]
    return Chosen(layers, decoder, bool(own))


def views_of(analysis: Analysis, chosen: Chosen, settings: Settings) -> tuple[str, ...]:
    """The views to draw: those in the settings, or all that apply.

    Raises DeformscopeError for a view in the settings that does not apply to the model.
    """
    dense = bool(chosen.layers) and not chosen.convolutions
    if dense and settings.composed:
        raise DeformscopeError(f"composed=True: {analysis.detector} has attention, whose layers are drawn one by one")
    fitting: tuple[str, ...] = VIEWS if chosen.convolutions else ENCODER_VIEWS if dense else ()
    fitting += (QUERIES,) if chosen.decoder else ()
    known = (*fitting, *(("segments",) if chosen.layers else ()))
    for view in settings.views:
        if view not in known:
            there = {
                "deformable convolutions": chosen.convolutions,
                "an encoder with deformable attention": dense,
                "object queries": bool(chosen.decoder),
            }
            has = " and ".join(what for what, given in there.items() if given)
            raise DeformscopeError(
                f"views={view!r}: {analysis.detector} has only {has or 'attention of an unknown kind'}"
                f"{' in these layers' if settings.layers else ''}; expected "
                f"{', '.join(map(repr, known)) or 'another detector'}"
            )
    return settings.views or fitting


def draw_all(analysis: Analysis, photo: Path, folder: Path, settings: Settings) -> list[Path]:
    """Draw the figures of one photo into ``folder`` and return the files; ``photo`` is in the title of the overview."""
    from . import save
    from .sampling_points import check_places

    check_places([(y, x) for x, y in settings.at], analysis.photo.shape[:2])
    drawings = _drawings(analysis, photo, chosen_layers(analysis, settings.layers, settings.head), settings)
    folder.mkdir(exist_ok=True)
    return [save(draw(), folder / f"{name}.{settings.format}", settings.dpi) for name, draw in drawings.items()]


def _drawings(analysis: Analysis, photo: Path, of: Chosen, settings: Settings) -> dict[str, Callable[[], Figure]]:
    """The figures to draw, by file name; each is drawn when called, so that only one is in memory at a time."""
    from .. import draw
    from ..backdrop import Backdrop

    backdrop: Any = Backdrop.of(analysis.photo)  # shared by all figures, which make copies
    found, names, group = analysis.detection, analysis.class_names, settings.group
    places = [(y, x) for x, y in settings.at]
    shaped: dict[str, Any] = {"cell_step": settings.cell_step, "scale": settings.scale, "group": group}
    found_too: dict[str, Any] = {"detection": found, "class_names": names, "min_score": settings.min_score}
    drawings: dict[str, Callable[[], Figure]] = {}
    layers, views = of.layers, views_of(analysis, of, settings)
    shown = layers
    if settings.composed:
        shown = [composed(upstream(analysis.fields, layer.name, DEEPEST)) for layer in layers]
    for view in views:
        if view == QUERIES:
            drawings |= _queries(analysis, of.decoder, backdrop, settings)
        elif view == "figure1":
            for layer, name in zip(shown, file_names(shown), strict=True):
                drawings[f"figure1-{name}"] = partial(draw.figure1, layer, backdrop, **shaped)
        elif view == "figure2":
            drawings[view] = partial(draw.figure2, shown, backdrop, **found_too, **shaped)
        elif view == "figure3":
            drawings[view] = partial(draw.figure3, shown, backdrop, **shaped)
        elif view == "segments":
            drawings[view] = partial(draw.segments, shown, backdrop, group=group)
        elif view == "sampling":
            for layer, name in zip(layers, file_names(layers), strict=True):
                stack = upstream(analysis.fields, layer.name, min(settings.depth, DEEPEST))
                drawing = partial(draw.sampling, stack, backdrop, places, detection=found, min_score=settings.min_score)
                drawings[f"sampling-{name}"] = partial(drawing, depth=len(stack), group=group)
        else:
            title = f"{photo.name} · {analysis.detector}"
            drawings[view] = partial(draw.overview, shown, backdrop, **found_too, group=group, title=title)
    return drawings


def _queries(
    analysis: Analysis, decoder: dict[str, AttentionField], backdrop: Any, settings: Settings
) -> dict[str, Callable[[], Figure]]:
    """The object queries of the best detections."""
    from .. import draw

    scores = analysis.detection.get("scores", torch.zeros(0)).tolist()
    found = [n for n, score in enumerate(scores) if not n or score >= settings.min_score][:MOST_QUERIES]
    if not found:
        raise DeformscopeError(f"views={QUERIES!r}: {analysis.detector} detects nothing, so there is no query to draw")
    queries, labels, names = analysis.queries(), analysis.detection["labels"].tolist(), analysis.class_names
    titles = [f"{names[labels[n]] if 0 <= labels[n] < len(names) else labels[n]} {scores[n]:.2f}" for n in found]
    boxes = analysis.detection["boxes"][found].tolist()
    chosen = [queries[n] for n in found]
    shown: dict[str, Any] = {"titles": titles, "boxes": boxes, "head": settings.head}
    drawings: dict[str, Callable[[], Figure]] = {QUERIES: partial(draw.queries, decoder, backdrop, chosen, **shown)}
    if all(field.has_boxes for field in decoder.values()):
        drawings["query-sizes"] = partial(draw.query_sizes, decoder, chosen, titles=titles)
    return drawings


def file_names(layers: Sequence[OffsetField]) -> list[str]:
    """A unique part of a file name for each layer, of letters, digits, "_" and "-".

    ``backbone.layer4.2.conv2`` becomes ``backbone-layer4-2-conv2``: LaTeX takes no dots before the ending, and other
    programs take what follows the first for one. Composed layers have the name of the uppermost, and ``-composed``.
    """
    names = []
    for layer in layers:
        top, plus, _ = layer.name.partition("+")
        plain = re.sub(r"[^A-Za-z0-9_]+", "-", top)[:LONGEST_NAME].strip("-") or "layer"
        names.append(plain + ("-composed" if plus else ""))
    return _numbered(names)


def folder_names(photos: Sequence[Path], taken: Sequence[str] = ()) -> list[str]:
    """A folder name for each photo: its stem, with a number if photos share it, or it is among those ``taken``."""
    return _numbered([photo.stem.strip(". ") or "photo" for photo in photos], taken)


def _numbered(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Add numbers to names that are taken; upper and lower case count as the same, as in some file systems."""
    used = {name.casefold() for name in taken}
    found = []
    for name in names:
        unlike, count = name, 1
        while unlike.casefold() in used:
            count += 1
            unlike = f"{name}-{count}"
        used.add(unlike.casefold())
        found.append(unlike)
    return found


def in_processes(work: Callable[[Any], Any], tasks: Sequence[Any], jobs: int) -> Iterator[Any]:
    """The results of ``work`` for all tasks, in their order, from ``jobs`` processes, which share this one's threads.

    ``work`` is sent to each process once. Warnings are given here. Raises DeformscopeError if ``work`` cannot be sent,
    and if a process ends early.
    """
    try:
        sent = pickle.dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DeformscopeError(
            f"jobs={jobs}: the work cannot be sent to other processes ({error}); expected jobs=1"
        ) from None
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _begin, (sent, threads))
    try:
        waiting: list[Future[Any]] = [pool.submit(_one, task) for task in tasks]
        waiting.reverse()
        while waiting:
            result, caught = waiting.pop().result()
            for message, category in caught:
                warnings.warn(message, category, stacklevel=3)
            yield result
    except BrokenProcessPool:
        raise DeformscopeError(
            f"jobs={jobs}: a process ended early, possibly for lack of memory; expected each to last, give fewer"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_work: Callable[[Any], Any] | None = None


def _begin(sent: bytes, threads: int) -> None:
    global _work  # noqa: PLW0603  (a process of the pool has no other place)
    _work = pickle.loads(sent)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that gave the work


def _one(task: Any) -> tuple[Any, list[tuple[str, type[Warning]]]]:
    assert _work is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _work(task)
    return result, [(str(one.message), one.category) for one in caught]

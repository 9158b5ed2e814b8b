"""The ablation of Table 1: which part of the offsets improves AP (Zhang et al., ICPRAM 2021, Section 4).

Each offset mode is trained with each seed, from the same initial weights on the same photos in the same order, so that
modes can be compared for each seed. Finished runs are kept, interrupted ones resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..detectors.deform import DeformConv, set_offset_mode
from ..detectors.detector import Detector
from ..detectors.options import OFFSET_MODES, OffsetMode
from ..errors import DeformscopeError
from ..metrics.coco import scores
from .datamodule import AT_ONCE, evaluated, source
from .learning import detections
from .recipe import Recipe
from .run import load as load_run, train
from .run_folder import Result, hardware
from .sources import Source


def ablate(
    recipe: Recipe,
    folder: Path,
    *,
    modes: Sequence[OffsetMode] = OFFSET_MODES,
    seeds: int = 3,
    jobs: int = 1,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Train every mode with the ``seeds`` seeds from ``recipe.run.seed`` on, each in the folder ``MODE-seedN``.

    All modes of a seed run before the next seed, so that there is soon a complete table of one seed. ``jobs`` runs are
    trained at the same time and share the CPU's threads; small networks use one core well and two badly. ``report``
    gets a line for each finished run. Raises DeformscopeError for an unknown mode, and when the folder holds other
    runs.
    """
    wanted = checked(modes)
    if seeds < 1 or jobs < 1:
        raise DeformscopeError(f"seeds={seeds}, jobs={jobs}: expected at least 1")
    numbers = range(recipe.run.seed, recipe.run.seed + seeds)
    runs = [(recipe.with_(offset_mode=m, seed=s), folder / f"{m}-seed{s}") for s in numbers for m in wanted]
    found = []
    for one in _trained_one_by_one(runs, progress) if jobs == 1 else _trained_together(runs, jobs):
        report(
            f"{one.offset_mode}, seed {one.seed}: AP {_shown(one.scores['ap'])} after {one.steps} steps, "
            f"{one.seconds:.0f} s"
        )
        found.append(one)
    return found


def _trained_one_by_one(runs: Sequence[tuple[Recipe, Path]], progress: bool) -> Iterator[Result]:
    for recipe, folder in runs:
        yield train(recipe, folder, progress=progress)


def _trained_together(runs: Sequence[tuple[Recipe, Path]], jobs: int) -> Iterator[Result]:
    """Results in the order of ``runs``, from processes, since the number of threads is set per process."""
    threads = max(1, torch.get_num_threads() // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin_worker, (threads, os.getpid())) as pool:
        for waiting in [pool.submit(train, *run, progress=False) for run in runs]:
            yield waiting.result()


def _begin_worker(threads: int, parent: int) -> None:
    """Set the number of threads, and exit when the parent process has gone, since nobody would use the result."""
    torch.set_num_threads(threads)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def at_test_time(
    recipe: Recipe,
    detector: Detector,
    *,
    modes: Sequence[OffsetMode] = OFFSET_MODES,
    report: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Compare modes without training: evaluate one trained detector with its offsets replaced by a part of them.

    The detector was not trained for this, so it loses more than what the part is worth. Its own mode is restored.
    ``recipe`` gives photos and classes; the detector's classes are matched by name.
    """
    wanted = checked(modes)
    val = source(recipe, "val")
    layers = [module for module in detector.modules() if isinstance(module, DeformConv)]
    before = [layer.offset_mode for layer in layers]
    if any(mode != "full" for mode in before):
        raise DeformscopeError(
            f"{detector.name}: was trained with offset_mode={before[0]!r}; a detector trained with 'full' has all parts"
        )
    found = []
    try:
        for mode in wanted:
            set_offset_mode(detector, mode)
            measured = evaluate(recipe, detector, val)
            report(f"{mode}: AP {_shown(measured['ap'])}")
            found.append(Result(recipe.name, recipe.fingerprint, mode, -1, 0, 0.0, hardware(), measured))
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.offset_mode = own
    return found


def trained(checkpoint: str) -> tuple[Recipe | None, Detector]:
    """Load a detector for :func:`at_test_time`, with its recipe if ``checkpoint`` is the folder of a run."""
    path = Path(checkpoint).expanduser()
    if path.suffix == ".ckpt":
        path = path.parent
    if path.is_dir():
        return load_run(path)
    from ..detectors.zoo import load

    return None, load(checkpoint)


def evaluate(recipe: Recipe, detector: Detector, val: Source) -> dict[str, float | None]:
    """Average precision of a detector on the recipe's validation photos, as at the end of training."""
    truth, indices = val.truth(), evaluated(recipe, val)
    results: list[dict[str, Any]] = []
    for start in range(0, len(indices), AT_ONCE):
        photos = [(i, val.load(i).image.permute(1, 2, 0).numpy()) for i in indices[start : start + AT_ONCE]]
        results += detections(detector, photos, truth, recipe.evaluation)
    return scores(truth, results, recipe.evaluation.classes, recipe.evaluation.photos)


def checked(modes: Sequence[str]) -> list[OffsetMode]:
    """The modes in the order of the table, without duplicates. Raises DeformscopeError for an unknown one."""
    unknown = [mode for mode in modes if mode not in OFFSET_MODES]
    if unknown or not modes:
        raise DeformscopeError(f"modes={list(modes)}: expected some of {', '.join(OFFSET_MODES)}")
    return [mode for mode in OFFSET_MODES if mode in modes]


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"

"""A run's folder: what is in it, whose it is, and that nobody else writes there."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only

from ...errors import DeformscopeError
from ...from_dict import build
from ..recipe.recipe import Recipe
from .callbacks import write_whole

RECIPE, RESULT, LAST, DETECTOR = "recipe.json", "result.json", "last.ckpt", "detector.safetensors"
DETECTIONS, LOCK = "detections.json", ".lock"


@dataclass(frozen=True)
class Result:
    """What a finished run measured."""

    name: str
    fingerprint: str
    offset_mode: str
    seed: int
    steps: int
    seconds: float
    """Of training, over all its parts when it was broken off; parts that were lost are not in it."""
    hardware: str
    scores: dict[str, float | None]
    """Average precision in percent: ``ap``, ``ap50``, …, ``ap/CLASS``; with masks also ``mask_ap``, …"""


def result(folder: Path, recipe: Recipe) -> Result | None:
    """What a finished run of this recipe measured; None when there is none in the folder."""
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found = Result(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise DeformscopeError(f"{path}: no result ({error}); remove it, and the evaluation is done again") from None
    if found.fingerprint != recipe.fingerprint:
        raise DeformscopeError(f"{folder}: holds a run of another recipe; {_difference(folder, recipe)}")
    return found


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """The folder is there; and gone again, if it is new, when an error comes before anything is kept in it."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeformscopeError(f"--out {folder}: cannot be used ({error.strerror}); give another folder") from None
    try:
        yield
    except DeformscopeError:
        with suppress(OSError):  # another process may be tidying too
            if new and not [file for file in folder.iterdir() if file.name != LOCK]:
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        raise


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No second command in the folder, whose checkpoints would mix; a kill frees it."""
    if getattr(rank_zero_only, "rank", 0):  # the first process of several has it
        yield
        return
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise DeformscopeError(f"{folder}: another command is training here; wait for it, or end it") from None


def claim(recipe: Recipe, folder: Path) -> None:
    """Keep the recipe in the folder, or see that the one there is the same."""
    if (folder / RECIPE).exists():
        if kept_recipe(folder).fingerprint != recipe.fingerprint:
            raise DeformscopeError(f"{folder}: holds a run of another recipe; {_difference(folder, recipe)}")
        return
    write_whole(folder / RECIPE, json.dumps(recipe.to_values(), indent=1) + "\n")


def kept_recipe(folder: Path) -> Recipe:
    """The recipe of the run in the folder."""
    path = folder / RECIPE
    try:
        return build(Recipe, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise DeformscopeError(f"{path}: no recipe of a run ({error}); name a folder that a run made") from None


def _difference(folder: Path, recipe: Recipe) -> str:
    """The first key in which the kept recipe differs."""

    def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
        return found

    kept, given = flat(kept_recipe(folder).to_values()), flat(recipe.to_values())
    for key in given:
        if kept.get(key) != given[key] and not key.startswith("promise."):
            return f"{key} is {kept.get(key)!r} there and {given[key]!r} now; choose another folder"
    return "choose another folder"


def state(path: Path) -> dict[str, Any]:
    """A checkpoint. Raises DeformscopeError for a file that is none."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of a file that is none
        reason = " ".join(str(error).split())[:200]
        raise DeformscopeError(f"{path}: no checkpoint ({reason}); remove it to begin anew") from None


def hardware() -> str:
    """What the run ran on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), "")
    return f"{torch.get_num_threads()} threads, {model or platform.machine()}, torch {torch.__version__}"

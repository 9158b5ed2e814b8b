"""The folder of a run: its files, and which recipe it belongs to."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import DeformscopeError
from ..files import write_json
from ..from_dict import from_dict
from .recipe import Recipe

RECIPE, RESULT, LAST, DETECTOR = "recipe.json", "result.json", "last.ckpt", "detector.safetensors"
DETECTIONS = "detections.json"


@dataclass(frozen=True)
class Result:
    """What a finished run measured."""

    name: str
    fingerprint: str
    """Of the recipe, by the version of deformscope that trained."""
    offset_mode: str
    seed: int
    steps: int
    seconds: float
    """Spent in training, summed over interruptions; work that was lost and done again is not counted twice."""
    hardware: str
    scores: dict[str, float | None]
    """Average precision in percent: ``ap``, ``ap50``, …, ``ap/CLASS``; with masks also ``mask_ap``, …"""


def result(folder: Path, recipe: Recipe) -> Result | None:
    """What the finished run of this recipe measured; None when the folder holds no result.

    Raises DeformscopeError when the result is that of another recipe.
    """
    path = folder / RESULT
    if not path.exists():
        return None
    try:
        found = Result(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DeformscopeError(f"{path}: no result ({error}); remove it to repeat the evaluation") from None
    if (folder / RECIPE).exists():
        _check_same(folder, recipe)
    elif found.fingerprint != recipe.fingerprint:
        raise DeformscopeError(f"{folder}: holds a run of another recipe; choose another folder")
    return found


def claim(recipe: Recipe, folder: Path) -> None:
    """Write the recipe to the folder, or check that the one there is the same."""
    if (folder / RECIPE).exists():
        _check_same(folder, recipe)
    else:
        write_json(folder / RECIPE, recipe.to_dict())


def kept_recipe(folder: Path) -> Recipe:
    """The recipe of the run in the folder."""
    path = folder / RECIPE
    try:
        return from_dict(Recipe, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise DeformscopeError(f"{path}: no recipe of a run ({error}); expected the folder of a run") from None


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Raise DeformscopeError when the folder's recipe gives other numbers, naming the first key that differs.

    Both are compared as this version reads them: a stored fingerprint changes with the keys that recipes have.
    """
    there, now = _flat(kept_recipe(folder).deciding()), _flat(recipe.deciding())
    for key, value in now.items():
        if there[key] != value:
            raise DeformscopeError(
                f"{folder}: holds a run of another recipe; {key} is {there[key]!r} there and {value!r} now; "
                "choose another folder"
            )


def _flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with paths such as ``run.steps`` as keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def state(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Raises DeformscopeError for any other file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for files that are no checkpoints
        reason = " ".join(str(error).split())[:200]
        raise DeformscopeError(f"{path}: no checkpoint ({reason}); remove it to start again") from None


def hardware() -> str:
    """The hardware of this process, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), "")
    return f"{torch.get_num_threads()} threads, {model or platform.machine()}, torch {torch.__version__}"

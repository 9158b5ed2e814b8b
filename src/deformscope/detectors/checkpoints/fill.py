"""A file's tensors put into a detector that was built for them, or named where they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...errors import DeformscopeError
from ..detector import Detector, Source

NAMED = 4
"""As many keys are named in a complaint."""

Theirs = Callable[[str], str]
"""One of the detector's own keys as the file has it."""
Network = TypeVar("Network", bound=Detector)


def fill(
    path: Path, state: dict[str, Tensor], detector: Network, described: str, theirs: Theirs = lambda key: key
) -> Network:
    """``detector`` (on the meta device) in eval mode, holding ``state``'s own tensors (no copy).

    Missing, unexpected and misshapen keys are named in a DeformscopeError, and what they do not fit is ``described``.
    """
    own = detector.state_dict()
    for key in own:
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=torch.long)  # says nothing where the statistics are frozen
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what}: {_listed(theirs(key) for key in keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise DeformscopeError(f"{path}: does not fit a {described}; {'; '.join(parts)}")
    wrong = [key for key, value in own.items() if value.shape != state[key].shape]
    if wrong:
        first = wrong[0]
        raise DeformscopeError(
            f"{path}: {len(wrong)} of another shape: {theirs(first)} is {tuple(state[first].shape)}, "
            f"expected {tuple(own[first].shape)}"
        )
    for key, value in state.items():
        if own[key].is_floating_point() != value.is_floating_point():
            raise DeformscopeError(f"{path}: {theirs(key)} is of type {value.dtype}; expected {own[key].dtype}")
    detector.load_state_dict(state, assign=True)
    detector.source = Source(path)
    return detector.eval()


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

"""Begin with the weights of another detector, of which the new one may have more: other classes, or masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DeformscopeError
from ..detector import Detector
from . import native

CLASSES = (".cls.weight", ".cls.bias")
"""Ends of the names of parameters with a row for each class."""


def load_start(detector: Detector, start: str | os.PathLike[str]) -> None:
    """Load the weights of ``start``, ``packaged`` or a file of :meth:`..detector.Detector.save`, into ``detector``.

    Classes are matched by name; classes and parameters that the file lacks keep their values. Raises DeformscopeError
    where the file has others than ``detector``, or no class of it.
    """
    text = os.fspath(start)
    try:
        other = native.packaged() if text == "packaged" else native.load(Path(text).expanduser())
    except DeformscopeError as error:
        raise DeformscopeError(f"start={text!r}: {error}") from None
    own, theirs = detector.state_dict(), other.state_dict()
    shared = [name for name in detector.class_names if name in other.class_names]
    if not shared:
        raise DeformscopeError(f"start={text!r}: it knows none of the classes {', '.join(detector.class_names[:5])}")
    taken = {}
    for name, value in theirs.items():
        if name.endswith(CLASSES) and name in own:
            value = _rows(own[name], value, detector.class_names, other.class_names)
        if name not in own or own[name].shape != value.shape:
            raise DeformscopeError(
                f"start={text!r}: its {name}, {list(value.shape)}, does not fit this network; expected a "
                f"{detector.kind} detector with the same layers"
            )
        taken[name] = value
    detector.load_state_dict(taken, strict=False)


def _rows(own: Tensor, theirs: Tensor, names: Sequence[str], their_names: Sequence[str]) -> Tensor:
    """``own`` with the rows of the classes that both know taken from ``theirs``."""
    rows = own.clone()
    for index, name in enumerate(names):
        if name in their_names:
            rows[index] = torch.as_tensor(theirs[their_names.index(name)], dtype=own.dtype)
    return rows

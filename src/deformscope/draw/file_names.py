"""Names of the files and folders that a run of figures writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..fields.field import OffsetField

LONGEST_NAME = 120


def file_names(layers: Sequence[OffsetField]) -> list[str]:
    """A part of a file's name for each layer: letters, digits, "_" and "-" only, and each unlike the others.

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

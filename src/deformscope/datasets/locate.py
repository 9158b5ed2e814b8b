"""Find the annotations and the photos of a data set, and the files of their names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DeformscopeError
from .values import shown

PROBED = 20
"""Number of photos by which a folder is recognised."""


def annotation_file(data: Path, split: str = "val") -> Path:
    """The annotation file of a split; ``data`` is a folder, or that file itself.

    In a folder it is ``annotations/instances_SPLIT.json``, or else the shortest such name that begins so
    (``instances_val2017.json`` for ``val``; of equally long ones the last), or ``SPLIT/_annotations.coco.json``. Raises
    DeformscopeError, naming what is there, when there is none.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise DeformscopeError(f"{data}: no such file or folder; expected a folder in COCO's layout or its annotations")
    folder = data / "annotations"
    files = sorted(path.name for path in folder.glob("*.json") if path.is_file())
    like = [name for name in files if name.startswith(f"instances_{split}")]
    # The shortest; of val2014 and val2017, the newer.
    found = [folder / name for name in sorted(like, key=lambda name: (-len(name), name))[-1:]]
    others = [folder / f"{split}.json", data / f"instances_{split}.json", data / split / "_annotations.coco.json"]
    for path in (*found, *others):
        if path.is_file():
            return path
    raise DeformscopeError(
        f"{data}: no annotations/instances_{shown(split)}.json; there: {', '.join(map(shown, files[:5])) or 'none'}; "
        "expected a folder in COCO's layout; give another split or the annotation file itself"
    )


def photo_folder(annotations: Path, names: Sequence[str]) -> Path:
    """The folder from which an annotation file's ``names`` count.

    Tried are ``SPLIT/`` and ``images/SPLIT/`` beside ``annotations/``, folders whose name the split's begins with
    (``train`` for ``train_masks``) or that begin with it, longer names first, ``images/``, the data set's own folder
    and that of the annotation file: the first that holds any of the first photos. Raises DeformscopeError when there is
    no folder of the split and no photo anywhere.
    """
    inside_annotations = annotations.absolute().parent.name == "annotations"
    root = annotations.parent.parent if inside_annotations else annotations.parent
    split = annotations.stem.removeprefix("instances_")
    like = list(_of_split(root, split))
    # Names that leave the folder are refused later, and do not count here.
    plain = [name for name in names[:PROBED] if ".." not in Path(name).parts]
    for folder in (*like, root / "images", root, annotations.parent):
        if any(is_file(folder / name) for name in plain):
            return folder
    for folder in (*like, root / "images"):
        if folder.is_dir():
            return folder
    raise DeformscopeError(
        f"{annotations}: no folder of photos named like {shown(split)} in {root}, and no photo anywhere near; "
        f"expected them in {root / 'SPLIT'} or {root / 'images' / 'SPLIT'}"
    )


def inside(folder: Path, name: str) -> Path | None:
    """The file of a name, or None if the name leaves the folder.

    Only the name counts: links inside the folder are followed, since data sets often consist of links.
    """
    path = folder / name
    # Not resolved, since this would follow links.
    own, there = Path(os.path.abspath(folder)), Path(os.path.abspath(path))  # noqa: PTH100
    return path if there.is_relative_to(own) and there != own else None


def is_file(path: Path) -> bool:
    """Whether there is a file, and not a folder, pipe or device; False for impossible names."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, NUL, unpaired surrogate
        return False


def _of_split(root: Path, split: str) -> Iterator[Path]:
    for base in (root, root / "images"):
        yield base / split
    for base in (root, root / "images"):
        if not base.is_dir():
            continue
        names = [path.name for path in base.iterdir() if path.is_dir() and path.name not in ("annotations", split)]
        for name in sorted(names, key=lambda name: (-len(name), name)):
            if split.startswith(name) or name.startswith(split):
                yield base / name

"""The files of a data set: where its annotations and photos are, and how EXIF turns the photos."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from jaxtyping import Shaped

from ..errors import DeformscopeError, warnings_ignored
from ..photo import MOST_PIXELS
from .values import MalformedError, shown

PROBED = 20
"""Number of photos by which a folder is recognised."""
ORIENTATION = 0x0112
"""The EXIF tag."""
Box = tuple[float, float, float, float]


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
    candidates = (*like, root / "images", root, annotations.parent)
    for folder in candidates:
        if any(is_file(folder / name) for name in plain):
            return folder
    for folder in candidates:
        files = PhotoFiles(folder)
        if any(files.alike(name) for name in plain):
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


class PhotoFiles:
    """The files below a folder of photos, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.renamed: dict[str, Path] = {}
        """The files that :meth:`find` found under another name than the one in the annotations."""
        self._alike: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path:
        """The file of that name, or the only one whose name differs from it no more than :func:`plain_name` allows.

        Raises MalformedError where there is none, or several.
        """
        path = self.folder / name
        if is_file(path):
            return path
        alike = self.alike(name)
        if not alike:
            raise MalformedError(f"no such file below {self.folder}")
        if len(alike) > 1:
            names = " and ".join(shown(str(one.relative_to(self.folder))) for one in alike[:3])
            raise MalformedError(f"no such file below {self.folder}, and {len(alike)} with similar names: {names}")
        self.renamed[name] = alike[0]
        return alike[0]

    def alike(self, name: str) -> list[Path]:
        """The files whose :func:`plain_name` is that of ``name``."""
        if self._alike is None:  # large folders take seconds, so only where a name is missing
            self._alike = {}
            for root, _, files in os.walk(self.folder):
                for file in files:
                    path = Path(root, file)
                    key = plain_name(path.relative_to(self.folder).as_posix())
                    self._alike.setdefault(key, []).append(path)
        return sorted(path for path in self._alike.get(plain_name(name), ()) if is_file(path))


def plain_name(name: str) -> str:
    """A file's name without what differs between systems: backslashes as slashes, ``%20`` as a space, case and Unicode
    form (NFC, NFD)."""
    path = unicodedata.normalize("NFC", unquote(name).replace("\\", "/").casefold())
    return "/".join(part for part in path.split("/") if part not in ("", "."))


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


@dataclass(frozen=True)
class Header:
    """Size and orientation from a photo's file, without its pixels."""

    stored: tuple[int, int]
    """Height and width as stored in the file, px."""
    orientation: int
    """EXIF orientation: 1 upright, 2-4 mirrored or upside down, 5-8 also rotated by 90°."""

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width of the photo that :func:`deformscope.photo.read` returns, px."""
        return self.stored[::-1] if self.orientation >= 5 else self.stored


def header(path: Path) -> Header:
    """Read size and orientation of a photo. Raises MalformedError for other files."""
    from PIL import Image

    try:
        with warnings_ignored(), Image.open(path) as image:
            width, height = image.size
            tags = getattr(image, "tag_v2", None)
            if image.format == "TIFF" and tags is not None:
                # Some versions of Pillow return the upright size of a TIFF.
                width, height = int(tags[256]), int(tags[257])
            try:
                orientation = image.getexif().get(ORIENTATION, 1)
            except Exception:  # invalid tags; the pixels of the photo may be fine
                orientation = 1
    except PermissionError:
        raise MalformedError("may not be read; check the file's permissions") from None
    except Exception as error:  # Pillow raises many kinds of errors for broken files
        reason = " ".join(str(error).split()) or type(error).__name__
        known = "cannot identify" not in reason and "exceeds limit" not in reason
        raise MalformedError(f"no photo that can be read{f' ({reason[:80]})' if known else ''}") from None
    if width * height > MOST_PIXELS:
        raise MalformedError(f"larger than {MOST_PIXELS / 1e6:.0f} megapixels; shrink it first")
    known_turn = type(orientation) is int and 1 <= orientation <= 8
    return Header((height, width), orientation if known_turn else 1)


def turned_box(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Convert a box xywh from the stored photo, of ``size`` (height, width), to the upright photo."""
    height, width = size
    x, y, w, h = box
    if orientation in (2, 3, 7, 8):  # mirrored horizontally
        x = width - (x + w)
    if orientation in (3, 4, 6, 7):  # mirrored vertically
        y = height - (y + h)
    return (y, x, h, w) if orientation >= 5 else (x, y, w, h)


def turned_mask(mask: Shaped[np.ndarray, "a b"], orientation: int) -> Shaped[np.ndarray, "c d"]:
    """Convert a mask from the stored photo to the upright one."""
    if orientation in (2, 3, 7, 8):
        mask = mask[:, ::-1]
    if orientation in (3, 4, 6, 7):
        mask = mask[::-1]
    return np.ascontiguousarray(mask.T if orientation >= 5 else mask)


def told(header: Header, noted: tuple[int, int] | None) -> bool | None:
    """Whether annotations with this size are in the photo as stored (True) or upright (False); None if both sizes
    match.

    Raises MalformedError if neither does.
    """
    if noted is not None and noted not in (header.stored, header.upright):
        (h, w), (nh, nw) = header.upright, noted
        raise MalformedError(f"{w}×{h} px where the annotations say {nw}×{nh}; get both from the same place")
    if noted is None or header.stored == header.upright:
        return None
    return noted == header.stored

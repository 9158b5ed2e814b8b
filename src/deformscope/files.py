"""Files and folders that appear whole or not at all: written beside their place first, then moved there in one step.

A reader sees the old content or the new one, never a part; where writing fails, or is interrupted, what was there
before stays and nothing else is left. Files get the mode that the user's umask gives to any new file.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DeformscopeError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def whole_file(path: Path | str, *, durable: bool = False) -> Iterator[Path]:
    """Where to write a file that takes the place of ``path`` when the block ends, and is removed when it raises.

    Folders on the way are made. A link stays, and the file that it points to is replaced; what is no regular file
    (``/dev/stdout``, a pipe) is written to directly. ``durable`` waits until the content is on the disk, so that it
    survives a loss of power too. Raises DeformscopeError where the file cannot be written.

    >>> with whole_file("figure.png") as beside:
    ...     figure.savefig(beside, format="png")
    """
    with _explained(path):
        target = Path(path)
        if target.is_dir():
            raise DeformscopeError(f"{path}: a folder, where a file was to be written; give another path")
        if target.exists() and not target.is_file():
            yield target
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _beside(target)
        try:
            yield beside
            if durable:
                with beside.open("rb+") as file:
                    os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of ``path`` when the block ends, and is removed when it raises.

    Where another process has put a folder at ``path`` meanwhile, that one stays. Raises DeformscopeError where the
    folder cannot be written.
    """
    target = Path(os.path.realpath(path))
    beside = _beside(target)
    try:
        with _explained(path):
            beside.mkdir(parents=True)
        yield beside
        with _explained(path):
            try:
                beside.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def locked(path: Path, busy: str, *, remove: bool = False) -> Iterator[None]:
    """Hold a lock, the file ``path``; ``remove`` it afterwards. The lock ends with the process, however that ends.

    Raises DeformscopeError, which says ``busy``, where another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise DeformscopeError(busy) from None
    try:
        yield
    finally:
        if remove:
            with suppress(OSError):  # Windows keeps open files
                path.unlink()
        lock.release()


@contextmanager
def claimed_folder(folder: Path, busy: str | None) -> Iterator[None]:
    """Make the folder of a run and lock it, unless ``busy`` is None; see :func:`locked`.

    If it is new and the block raises DeformscopeError with nothing written, it is removed again. Raises
    DeformscopeError where it cannot be made.
    """
    new, lock = not folder.exists(), folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeformscopeError(f"folder={folder}: cannot be used ({error.strerror}); choose another folder") from None
    try:
        with ExitStack() as held:
            if busy is not None:
                held.enter_context(locked(lock, busy))
            yield
    except DeformscopeError:
        with suppress(OSError):  # another process may be removing it too
            if new and not [file for file in folder.iterdir() if file != lock]:
                lock.unlink(missing_ok=True)
                folder.rmdir()
        raise


def sha256(path: Path | str) -> str:
    """Of what a file holds, hexadecimal. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_bytes(path: Path | str, content: bytes) -> Path:
    """Write bytes to a file, whole or not at all; returns its path."""
    with whole_file(path) as beside:
        beside.write_bytes(content)
    return Path(path)


def write_text(path: Path | str, text: str) -> Path:
    """Write text as UTF-8 with plain line feeds, whole or not at all; returns its path.

    What UTF-8 cannot hold (a file's name in another encoding) is written as a question mark.
    """
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path | str, content: Any, indent: int | None = 1) -> Path:
    """Write values as JSON, whole or not at all; without ``indent`` in one line. Returns its path."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False) + "\n"
    # JSON's escape of a lone surrogate is Python's, so that a name that is no UTF-8 comes back as it was.
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write contiguous tensors and what is to be known of them as safetensors, whole or not at all."""
    from safetensors.torch import save

    # The library's own files can be read by their owner alone, whatever the user's umask says.
    return write_bytes(path, save(dict(tensors), dict(metadata)))


def _beside(target: Path) -> Path:
    # Hidden, of this process alone, and short enough whatever the target's name.
    return target.with_name(f".{target.name[:40]}.{os.getpid()}-{secrets.token_hex(3)}.tmp")


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeformscopeError(
            f"{path}: cannot be written ({error.strerror or error}); give another path, or make room"
        ) from error

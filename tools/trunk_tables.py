"""Tables and the dose curve of the runs of trunk.py."""

from pathlib import Path


def tables(folder: Path, arms: list[tuple[str, str]]) -> None:
    raise NotImplementedError

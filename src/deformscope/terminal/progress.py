"""The one progress bar: a line on stderr, shown where a person watches and gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


class ProgressBar:
    """A bar with a label, a count and the time left; as a context manager or with :meth:`start` and :meth:`stop`.

    Nothing is shown when ``shown`` is False or stderr is no terminal. ``total`` is None while it is not known;
    ``in_bytes`` shows sizes and a speed.

    >>> with ProgressBar("photos", total=len(photos)) as bar:
    ...     for photo in photos:
    ...         bar.advance()
    """

    def __init__(self, label: str, total: int | None = None, *, shown: bool = True, in_bytes: bool = False) -> None:
        self._bar: Progress | None = None
        if not (shown and sys.stderr is not None and sys.stderr.isatty()):
            return
        from rich import progress
        from rich.console import Console

        sizes = (progress.DownloadColumn(), progress.TransferSpeedColumn())
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            *(sizes if in_bytes else (progress.MofNCompleteColumn(),)),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            # What is printed goes above the bar, but only to where it was to go: not from a file to the terminal.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task: TaskID = self._bar.add_task(label, total=total)

    def start(self) -> None:
        """Show the bar."""
        if self._bar is not None:
            from rich.errors import LiveError

            try:
                self._bar.start()
            except LiveError:  # older versions show one at a time
                self._bar = None

    def stop(self) -> None:
        """Take the bar away; may be called twice."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> ProgressBar:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def advance(self, by: int = 1) -> None:
        """``by`` more are done."""
        if self._bar is not None:
            self._bar.advance(self._task, by)

    def update(self, done: int, *, total: int | None = None, label: str | None = None) -> None:
        """``done`` are done in all; ``total`` and ``label`` change where they are given."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=label)


def track(items: Iterable[Item], label: str, total: int, *, shown: bool = True) -> Iterator[Item]:
    """The items one by one, with a bar that counts those that are done with."""
    with ProgressBar(label, total, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()

"""The progress bar: a line on stderr, only if that is a terminal, which is removed at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Item = TypeVar("Item")


class ProgressBar:
    """A bar with a label, a count and the time left; use it as a context manager or with :meth:`start` and
    :meth:`stop`.

    Nothing is shown if ``shown`` is False or stderr is not a terminal. ``total`` is None if it is unknown; ``in_bytes``
    shows sizes and a speed.

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
            # Printed lines go above the bar, but output that goes to a file must not be redirected to the terminal.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task: TaskID = self._bar.add_task(label, total=total)

    def start(self) -> None:
        """Show the bar."""
        if self._bar is not None:
            from rich.errors import LiveError

            try:
                self._bar.start()
            except LiveError:  # older versions show one bar at a time
                self._bar = None

    def stop(self) -> None:
        """Remove the bar; may be called twice."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> ProgressBar:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def advance(self, by: int = 1) -> None:
        """Advance by ``by``."""
        if self._bar is not None:
            self._bar.advance(self._task, by)

    def update(self, done: int, *, total: int | None = None, label: str | None = None) -> None:
        """Set the count to ``done``; ``total`` and ``label`` are changed if given."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=label)


def track(items: Iterable[Item], label: str, total: int, *, shown: bool = True) -> Iterator[Item]:
    """Iterate over ``items`` with a bar."""
    with ProgressBar(label, total, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()

"""The application itself: how errors reach the user, and what options mean in every command."""

from __future__ import annotations

import os
import sys
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import __version__
from ..errors import DeformscopeError

app = App(name="deformscope", version=__version__, help="See, measure and use what deformable convolutions learn.")

Detector = Annotated[str, Parameter(help="A name (`deformscope detectors` lists them) or a checkpoint file.")]
Layers = Annotated[
    list[str] | None,
    Parameter(name="--layer", help="Layers to show: a name, a part of it or a pattern (`*layer3*`); may be repeated."),
]


def progress() -> Progress:
    """A progress bar on stderr, shown where a person watches and gone when done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def console() -> Console:
    """Where tables go: stdout, as wide as the terminal, or wide enough for any table where there is none."""
    return Console(width=None if sys.stdout.isatty() else 160)


def complain(message: str) -> None:
    """One line on stderr."""
    print("deformscope: " + " ".join(message.split()), file=sys.stderr)


def main() -> None:
    """Run the command line; bad input gives one line on stderr and exit code 2."""
    try:
        code = app(sys.argv[1:], exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (DeformscopeError, CycloptsError) as error:
        complain(f"{error}" + (" (see --help)" if isinstance(error, CycloptsError) else ""))
        code = 2
    except KeyboardInterrupt:
        complain("interrupted")
        code = 130
    except BrokenPipeError:  # the reader of a pipe has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)

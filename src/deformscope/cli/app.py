"""The application: options that several commands share, errors as one line on stderr, and exit codes.

0: done; 1: ``diagnose`` found a broken layer; 2: bad input, or output that could not be written; 70: a fault of the
program, with its traceback; 130: interrupted.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError
from cyclopts.validators import Number
from rich.console import Console

from .. import __version__
from ..errors import DeformscopeError, DeformscopeWarning

app = App(
    name="deformscope",
    version=__version__,
    help="See, measure and use what deformable convolutions learn.",
    default_parameter=Parameter(negative=()),
)

RENAMED = {"--least": "--min-score", "--every": "--cell-step", "--limit": "--max-photos"}
"""Former and present names of options."""


def _available(_: Any, device: str | None) -> None:
    """Raise ValueError for a device that this machine does not have."""
    if device is None or device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(f"Not available here ({reason}); expected cpu, cuda or cuda:N.") from None


DETECTOR_HELP = (
    "Name (see `deformscope detectors`) or checkpoint file of a detector; hf:FOLDER or hf:NAME for an object detector "
    "of transformers; python:package.module:factory for your own, whose code is run."
)
Detector = Annotated[str, Parameter(help=DETECTOR_HELP)]
Fit = Annotated[
    str | None,
    Parameter(
        help="How a detector of your own makes its input of a photo, where that is no plain resize: stretch, crop, "
        "crop:256 (the shorter side resized to 256 px first), pad or pad-centre."
    ),
]
Layers = Annotated[
    list[str] | None,
    Parameter(
        name="--layer", help="Layers to use: a name, a part of one, or a pattern such as `*layer3*`. Can be repeated."
    ),
]
Composed = Annotated[
    bool,
    Parameter(
        help="Compose the offsets of each layer and of up to two layers below it into one field.", show_default=False
    ),
]
Data = Annotated[Path, Parameter(help="Folder in COCO's layout, or one of its annotation files.")]
Split = Annotated[
    str, Parameter(help="Start of the split's name: annotations/instances_SPLIT*.json and photos in SPLIT*/.")
]
Broken = Annotated[
    Literal["refuse", "skip"], Parameter(help="Refuse a folder with broken annotations or photos, or skip these.")
]
Device = Annotated[str, Parameter(help="Device to run on: cpu, cuda or cuda:N.", validator=_available)]

POSITIVE = Number(gte=1)


FAULT = 70
"""Exit code of an unexpected error (``EX_SOFTWARE``): Python's own, 1, means broken offsets."""


class Output(io.TextIOWrapper):
    """A standard stream that never ends the work: characters that its encoding lacks are escaped, and what cannot be
    written is dropped. :attr:`lost` then holds the error."""

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, or drop."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, or drop."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        self.lost = self.lost or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # for what is buffered, too
        os.close(null)


def make_output(stream: Any) -> Any:
    """A standard stream as :class:`Output`; for a closed one, the null device. Others, such as a test's, stay."""
    if stream is None:
        return Path(os.devnull).open("w", encoding="utf-8")
    if type(stream) is not io.TextIOWrapper:
        return stream
    return Output(
        stream.buffer,
        stream.encoding,
        "backslashreplace" if stream.errors in ("strict", "surrogateescape") else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def console() -> Console:
    """The console for tables on stdout; 160 columns wide where that is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 160)


def complain(message: str) -> None:
    """Print an error as one line on stderr, with the library's arguments as flags of the command."""
    print("deformscope: " + in_flags(" ".join(message.split()), sys.argv[1:]), file=sys.stderr)


PLACE = re.compile(r"^(?:at=\(y=|place \(y, x\) = \()([^,]+), (?:x=)?([^)]+)\)")
"""With which the library's errors about a place begin."""


def in_flags(message: str, tokens: Sequence[str]) -> str:
    """Replace the arguments with which an error of the library begins by the flags of the command in ``tokens``.

    ``cell_step=0: expected …`` becomes ``--cell-step 0: expected …``, ``composed=True`` ``--composed`` and places are
    X,Y. The rest, with file names in it, stays.
    """
    message = re.sub(PLACE, lambda found: f"at={found[2]},{found[1]}", message, count=1)
    command = next((app[token] for token in tokens[:1] if token in app), None)
    if command is None or not re.match(r"\w+=", message):
        return message
    flags = {one.field_info.name: one.names[0] for one in command.assemble_argument_collection()}
    flags = {name: flag for name, flag in flags.items() if flag.startswith("--")}
    head, colon, rest = message.partition(": ")
    head = re.sub(
        r"(^|, )(\w+)=(True$)?", lambda m: f"{m[1]}{flags[m[2]]}{'' if m[3] else ' '}" if m[2] in flags else m[0], head
    )
    return head + colon + rest


def main() -> None:
    """Run the command line, and exit with one of this module's codes."""
    # Before torch is loaded: threads that spin while they wait make a busy machine ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.stdout, sys.stderr = make_output(sys.stdout), make_output(sys.stderr)
    code: Any = 2
    try:
        with warnings.catch_warnings():
            # Pillow warns of damage beside the pixels, such as in EXIF, also in threads that read photos.
            warnings.filterwarnings("ignore", module="PIL")
            shown = warnings.showwarning
            warnings.showwarning = lambda text, kind, *place: (
                complain(str(text)) if issubclass(kind, DeformscopeWarning) else shown(text, kind, *place)
            )
            code = app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
    except UnknownOptionError as error:
        given = (error.token.keyword or error.token.value).partition("=")[0]
        renamed = f"{given} is now called {RENAMED[given]}" if given in RENAMED else str(error)
        complain(f"{renamed} (see --help)")
    except CycloptsError as error:
        complain(f"{error} (see --help)")
    except DeformscopeError as error:
        complain(str(error))
    except KeyboardInterrupt:
        complain("interrupted")
        code = 130
    except Exception:
        traceback.print_exc()
        code = FAULT
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost and not isinstance(lost, BrokenPipeError):  # which is a reader, such as head, that needs no more
        complain(f"output: cannot be written ({lost.strerror}); make room, or give another place")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)

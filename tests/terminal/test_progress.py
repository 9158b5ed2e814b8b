"""The bar is seen where a person watches, and leaves no trace there nor in what is piped elsewhere."""

import os
import pty
import subprocess
import sys

from deformscope.terminal.progress import ProgressBar, track

WORK = """
from deformscope.terminal.progress import ProgressBar, track
with ProgressBar("[all] photos", total=None) as bar:
    bar.update(1, total=3)
    with ProgressBar("inner", 5) as inner:
        inner.advance()
    print("a result")
    bar.update(3, label="almost")
print(*track("ab", "letters", 2))
"""


def watched(code: str, **streams) -> tuple[str, bytes]:
    """What a terminal at stderr shows, and what stdout gets where it is piped."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, env=environment, **streams
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(ours)
    printed = process.communicate()[0]
    assert process.returncode == 0, shown.decode()
    return shown.decode(), printed


def test_results_go_to_the_pipe_and_the_bar_to_the_terminal():
    shown, printed = watched(WORK)
    assert printed.decode().splitlines() == ["a result", "a b"]
    assert "[all] photos" in shown and "almost" in shown and "letters" in shown
    assert "a result" not in shown
    assert shown.rstrip().endswith("\x1b[2K"), "the last line is cleared"


def test_nothing_is_shown_where_nobody_watches(capsys):
    with ProgressBar("photos", 2) as bar:
        bar.advance()
        bar.update(2, total=2, label="done")
    assert list(track([1, 2], "items", 2, shown=False)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_an_error_in_the_work_takes_the_bar_away_and_goes_on():
    shown, _ = watched(
        "from deformscope.terminal.progress import ProgressBar\n"
        "try:\n"
        "    with ProgressBar('photos', 2, in_bytes=True) as bar:\n"
        "        bar.update(1)\n"
        "        raise ValueError\n"
        "except ValueError:\n"
        "    print('caught')\n"
    )
    assert shown.rstrip().endswith("\x1b[2K")


def test_a_program_without_standard_streams_works(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with ProgressBar("photos", 1) as bar:
        bar.advance()

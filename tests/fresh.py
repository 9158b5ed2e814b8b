"""Programs in processes of their own that begin without deformscope but with torch, whose import takes seconds."""

import json
import subprocess
import sys
from collections.abc import Sequence

PARENT = """
import json, os, sys, traceback
import matplotlib.figure, numpy, torch, torchvision

assert not any(name.partition(".")[0] == "deformscope" for name in sys.modules)
for program in json.load(sys.stdin):
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            exec(program, {"__name__": "__main__"})
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit("in: " + program)
"""


def run_each(programs: Sequence[str]) -> list[str]:
    """The lines that the programs print, one after the other. AssertionError with the traceback of one that fails."""
    done = subprocess.run(
        [sys.executable, "-c", PARENT], input=json.dumps(programs), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()

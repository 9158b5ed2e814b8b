"""Timing on a machine that others use too: rounds of all candidates in turn, medians, and ratios within a round."""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def arguments(text: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark has: ``--threads`` and ``--rounds``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=rounds)
    return parser


clock = time.perf_counter
"""Or ``time.process_time``, which a busy machine disturbs less, for work in one thread."""
BLOCK_MS = 10.0
"""Shorter calls are timed several at once: of one alone, what ran before it and left in the caches decides."""


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds a call of every candidate in each round, after one round that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    calls = {name: max(1, math.ceil(BLOCK_MS / _milliseconds(run, 1))) for name, run in candidates.items()}
    for _ in range(rounds):
        for name, run in candidates.items():
            spent[name].append(_milliseconds(run, calls[name]))
    return spent


def _milliseconds(run: Callable[[], object], calls: int) -> float:
    began = clock()
    for _ in range(calls):
        run()
    return 1e3 * (clock() - began) / calls


def median(spent: list[float]) -> float:
    """The median of a candidate's milliseconds."""
    return statistics.median(spent)


def speed_up(spent: Mapping[str, list[float]], name: str, over: str) -> float:
    """How many times faster than ``over``: the median of the ratios of rounds, in which both met the same load."""
    return statistics.median(a / b for a, b in zip(spent[over], spent[name], strict=True))


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak resident memory of the process while ``run`` runs, above what it was before (Linux; call it warm)."""
    if sys.platform != "linux":
        raise SystemExit("peak memory is measured on Linux only; leave --memory away")
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
    before = _status("VmRSS")
    kept = run()
    after = _status("VmHWM")
    del kept
    return after - before


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024

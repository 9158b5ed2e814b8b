"""Timing on a machine that others use too: rounds of all candidates in turn, medians, and ratios within a round."""

from __future__ import annotations

import argparse
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


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every candidate in each round, after one round that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if turn:
                spent[name].append(1e3 * (time.perf_counter() - began))
    return spent


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

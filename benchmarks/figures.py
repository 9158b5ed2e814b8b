"""What drawing costs: the whole command beside the imports that it cannot do without, and what a photo adds to it.

    python benchmarks/figures.py [--rounds 5] [--folder 20] [--jobs 2]

The floor is a fresh process that does `import torch, torchvision, matplotlib` and nothing else. Candidates (fresh
processes, too): the same with what deformscope imports and the packaged weights; `deformscope figures photo.jpg`, cold;
`deformscope --version`; and, with --folder, the command on folders of one and of so many photos, with and without
--jobs. They alternate, so that all meet the same load, and are compared by processor time, of which other programs take
less than of the clock's; the peak of resident memory stands beside it. Last, the nine figures in a warm process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import skimage.data

IMPORTS = "import torch, torchvision, matplotlib"
OURS = "from deformscope import analyse, load\nfrom deformscope.draw import batch, figure1\nload('packaged')"
CAT = Path(skimage.data.__file__).parent / "chelsea.png"


@dataclass(frozen=True)
class Spent:
    """What a process took, children included."""

    processor: float
    clock: float
    megabytes: float


def run(*arguments: object) -> Spent:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments}: exit status {status}")
    return Spent(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out, folder = Path(temporary, "out"), Path(temporary, "photos")
        command = ("-m", "deformscope.cli", "figures")
        candidates = {
            "imports": ("-c", IMPORTS),
            "and ours, weights loaded": ("-c", f"{IMPORTS}\n{OURS}"),
            "figures photo.jpg": (*command, CAT, "--out", out / "one"),
            "--version": ("-m", "deformscope.cli", "--version"),
        }
        if options.folder:
            folder.mkdir()
            for number in range(options.folder):
                shutil.copy(CAT, folder / f"{number:03}.png")
            candidates["folder"] = (*command, folder, "--out", out / "folder")
            candidates["folder, jobs"] = (*command, folder, "--out", out / "jobs", "--jobs", options.jobs)
        out.mkdir()
        spent: dict[str, list[Spent]] = {name: [] for name in candidates}
        for _ in range(options.rounds):
            for name, arguments in candidates.items():
                spent[name].append(run(*arguments))
        print(f"{options.rounds} rounds, medians; × is processor time over that of the imports in the same round")
        for name, rounds in spent.items():
            ratio = statistics.median(a.processor / b.processor for a, b in zip(rounds, spent["imports"], strict=True))
            processor, clock = (
                statistics.median(getattr(one, key) for one in rounds) for key in ("processor", "clock")
            )
            peak = max(one.megabytes for one in rounds)
            print(f"{name:26} {processor:6.2f} s ×{ratio:5.2f}   {clock:6.1f} s by the clock, {peak:5.0f} MiB")
        warm(out, options.rounds)


def warm(out: Path, rounds: int) -> None:
    from deformscope import analyse, load
    from deformscope.draw import batch

    analysis = analyse(load("packaged"), CAT)
    drawn: list[float] = []
    for _ in range(1 + rounds):
        began = time.process_time()
        files = batch.draw_all(analysis, CAT, out / "warm", batch.Settings())
        drawn.append(time.process_time() - began)
    size = sum(file.stat().st_size for file in files) / 2**20
    print(f"{len(files)} figures, warm: {statistics.median(drawn[1:]):.2f} s of processor time, {size:.1f} MiB of PNG")


if __name__ == "__main__":
    main()

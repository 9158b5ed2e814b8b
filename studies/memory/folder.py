"""Whether memory grows while `deformscope figures FOLDER` runs: resident memory by the number of photos drawn.

    python benchmarks/folder.py [--photos 1000] [--view figure2] [--dpi 40] [--save samples.json]

The photos are crops of scikit-image's cat, of 96 to 160 px a side, so that nearly every one has a shape of its own; one
view is drawn of each. The process is looked at twice a second. Growth is the slope of a straight line through the
medians of twenty equal parts of the run, without the first, in which caches fill, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from scipy import stats

PARTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--view", default="figure2")
    parser.add_argument("--dpi", type=int, default=40)
    parser.add_argument("--save", type=Path, help="file for all samples")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary, "photos"), Path(temporary, "out")
        make_photos(folder, options.photos)
        command = [sys.executable, "-m", "deformscope.cli", "figures", folder, "--out", out]
        command += ["--view", options.view, "--dpi", options.dpi, "--jobs", 1]
        samples = watch([str(part) for part in command], out)
    if options.save:
        options.save.write_text(json.dumps(samples))
    report(samples, options.photos)


def make_photos(folder: Path, count: int) -> None:
    """Crops of unlike sizes."""
    folder.mkdir()
    random, cat = np.random.default_rng(0), skimage.data.chelsea()
    for number in range(count):
        height, width = random.integers(96, 161, 2)
        top, left = (random.integers(0, cat.shape[axis] - side) for axis, side in ((0, height), (1, width)))
        Image.fromarray(cat[top : top + height, left : left + width]).save(folder / f"{number:04}.png")


def watch(command: list[str], out: Path) -> list[tuple[int, float]]:
    """Photos begun and resident memory in MiB, twice a second."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    status, samples = Path(f"/proc/{process.pid}/status"), []
    while process.poll() is None:
        lines = status.read_text().splitlines()
        resident = [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")]
        begun = sum(path.is_dir() for path in out.iterdir()) if out.is_dir() else 0
        if resident and begun:
            samples.append((begun, resident[0]))
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"exit status {process.returncode}")
    return samples


def report(samples: list[tuple[int, float]], photos: int) -> None:
    edges = np.linspace(0, photos, PARTS + 1)[1:]
    parts: list[list[float]] = [[] for _ in edges]
    for begun, resident in samples:
        parts[int(np.searchsorted(edges, begun))].append(resident)
    known = [
        (edge - photos / PARTS / 2, statistics.median(part)) for edge, part in zip(edges, parts, strict=True) if part
    ]
    middle, resident = np.array(known[1:]).T
    line = stats.linregress(middle, resident)
    half = stats.t.ppf(0.975, len(middle) - 2) * line.stderr
    print(f"{photos} photos, {len(samples)} samples; median MiB by part: {' '.join(f'{one[1]:.0f}' for one in known)}")
    print(f"peak {max(one[1] for one in samples):.0f} MiB")
    low, high = (1e3 * (line.slope + sign * half) for sign in (-1, 1))
    print(f"growth {1e3 * line.slope:+.1f} MiB per 1,000 photos, 95 % interval {low:+.1f} to {high:+.1f}")


if __name__ == "__main__":
    main()

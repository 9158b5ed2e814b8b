"""Folders of hundreds of photos: memory does not grow, and the manifest has all of them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.draw import batch


def resident() -> int:
    """Resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads memory from /proc")
def test_two_hundred_photos_take_no_more_memory_than_forty(tmp_path):
    random = np.random.default_rng(0)
    photos = []
    for number in range(200):
        photos.append(tmp_path / f"{number:03}.png")
        Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(photos[-1])
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    settings = batch.Settings(views=("figure2", "figure3"), dpi=40)
    used = []
    for outcome in batch.figures(detector, photos, tmp_path / "out", settings):
        assert not outcome.error
        used.append(resident())
    assert max(used[40:]) < max(used[:40]) + 30e6
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["photos"]) == 200


def test_the_manifest_of_a_run_that_is_broken_off_has_what_was_drawn(tmp_path, cat):
    detector = DenseDetector(DenseConfig(("cat",), channels=16, shorter_side=64, longer_side=96)).eval()
    run = batch.figures(detector, [cat, cat, cat], tmp_path / "out", batch.Settings(views=("figure3",), dpi=30))
    next(run)
    run.close()
    assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["photos"]) == 1

"""What measuring costs in `deformscope score`, per photo, relative to the forward passes of the same photos.

    python benchmarks/score.py DATA [--photos 8] [--rounds 5] [--detector packaged]

DATA is a folder in COCO's layout. Forward passes are those of a run: the detector and its copy with fresh offset
convolutions, on the photo and on its off-centre crop. Forward passes and metrics of the photos alternate, so that both
meet the same load. The summary (bootstrap, intervals, AP) is timed on 20 copies of the records.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, median, speed_up

import deformscope
from deformscope.score.passes import ForwardPasses, measured
from deformscope.score.records import Record
from deformscope.score.scenes import open_folder
from deformscope.score.summary import summarise

COPIES = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--detector", default="packaged")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    detector = deformscope.load(options.detector)
    photos = open_folder(options.data)
    scenes = [photos.scene_or_reason(index) for index in range(options.photos)]

    def forward() -> list[tuple[Any, Any, Any]]:
        passes = ForwardPasses(detector, photos)
        return [passes.of_photo(index, scene) for index, scene in enumerate(scenes)]

    prepared = forward()

    def metrics() -> list[Record]:
        return [replace(one, views={k: measured(t) for k, t in tasks.items()}) for one, tasks, _ in prepared if tasks]

    spent = interleaved({"forward": forward, "metrics": metrics}, options.rounds)
    measures = metrics()
    many = [replace(one, index=one.index + options.photos * copy) for copy in range(COPIES) for one in measures]
    began = time.perf_counter()
    summarise(lambda: many, {})
    summary = 1e3 * (time.perf_counter() - began) / len(many)
    views = sum(len(one.views) for one in measures)
    layers = len(measures[0].views["whole"].layers) - 1
    print(f"torch {torch.__version__}, {options.threads} threads, {options.rounds} rounds, medians")
    print(f"{len(measures)} photos, {views} views, {layers} layers; ms per photo:")
    print(f"forward passes {median(spent['forward']) / options.photos:.0f}")
    print(f"metrics {median(spent['metrics']) / options.photos:.0f}: {1 / speed_up(spent, 'metrics', 'forward'):.2f}")
    print(f"summary of {len(many)} photos {summary:.0f}: {summary / median(spent['forward']) * options.photos:.2f}")


if __name__ == "__main__":
    main()

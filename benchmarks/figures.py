"""What seeing costs: capture beside a plain forward pass, and all figures beside it, on a 1333×800 photo.

    python benchmarks/figures.py [--rounds 5]

The detector is Faster R-CNN, ResNet-50-FPN with deformable layer2-4 (the paper's), freshly initialised with random
offsets; the figures are those of a default run of `deformscope figures`. Forward and forward-with-capture alternate, so
that both meet the same load.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import interleaved, median, speed_up

from deformscope import analyse, capture
from deformscope.detectors.deform import DeformConv
from deformscope.detectors.rcnn.build import build
from deformscope.draw import batch as render


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    detector = build("faster_rcnn_r50_fpn", deformable="dconv_c3-c5").eval()
    for module in detector.modules():
        if isinstance(module, DeformConv):
            torch.nn.init.normal_(module.conv_offset.weight, std=0.01)
    noise = np.random.default_rng(0).integers(0, 255, (50, 84, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(noise).resize((1333, 800), Image.Resampling.BICUBIC))

    def captured() -> None:
        with capture(detector):
            detector(photo)

    spent = interleaved({"plain": lambda: detector(photo), "captured": captured}, rounds)
    overhead = 1 / speed_up(spent, "captured", "plain") - 1
    analysis = analyse(detector, photo)
    settings = render.Settings()
    drawn: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            began = time.perf_counter()
            files = render.draw_all(analysis, Path("photo.png"), Path(folder), settings)
            drawn.append(1e3 * (time.perf_counter() - began))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {rounds} rounds, medians")
    print(f"forward {median(spent['plain']):.0f} ms, with capture {median(spent['captured']):.0f} ms: {overhead:+.1%}")
    print(
        f"{len(files)} figures {median(drawn):.0f} ms: {median(drawn) / median(spent['plain']):.2f} of a forward pass"
    )


if __name__ == "__main__":
    main()

"""What seeing costs: a forward pass with capture beside the bare one.

    OMP_WAIT_POLICY=passive python benchmarks/capture.py [--large | --attention] [--rounds 21] [--processor-time]

The packaged detector on a photo of 451×300 px; with --large Faster R-CNN, ResNet-50-FPN with deformable layer2-4,
freshly initialised with random offsets, on 1333×800 px; with --attention RT-DETR, ResNet-18, of transformers, freshly
initialised, on 640×640 px. `no places` is capture(places=False); the floor is an empty dispatch mode.
"""

from __future__ import annotations

import time

import numpy as np
import timing
import torch
from PIL import Image
from timing import arguments, interleaved, median, speed_up
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import deformscope as ds
from deformscope.detectors.deform import DeformConv


class Empty(TorchDispatchMode):
    """Hands every operator on."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = arguments(__doc__, rounds=21)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--attention", action="store_true")
    parser.add_argument("--processor-time", action="store_true", help="not the clock's: for a busy machine")
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    if settings.processor_time:
        timing.clock = time.process_time
    detector: nn.Module = large() if settings.large else ds.load("packaged")
    size = (1333, 800) if settings.large else (451, 300)
    noise = np.random.default_rng(0).integers(0, 255, (9, 14, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))

    if settings.attention:
        detector, pixels = rt_detr(), torch.rand(1, 3, 640, 640)

    @torch.no_grad()
    def forward() -> None:
        detector(pixel_values=pixels) if settings.attention else detector(photo)

    def captured() -> None:
        with ds.capture(detector):
            forward()

    def numbers_only() -> None:
        with ds.capture(detector, places=False):
            forward()

    def in_mode() -> None:
        with Empty():
            forward()

    candidates = {"forward": forward, "capture": captured, "no places": numbers_only, "empty dispatch mode": in_mode}
    spent = interleaved(candidates, settings.rounds)
    print(f"torch {torch.__version__}, {settings.threads} threads, {settings.rounds} rounds, medians")
    for name in candidates:
        print(f"{name:20} {median(spent[name]):8.1f} ms  {1 / speed_up(spent, name, 'forward') - 1:+7.1%}")


def rt_detr() -> nn.Module:
    """RT-DETR, ResNet-18: the settings of its published configuration."""
    import transformers

    torch.manual_seed(0)
    backbone = transformers.RTDetrResNetConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[128, 256, 512],
        hidden_expansion=0.5,
        decoder_layers=3,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
    )
    return transformers.RTDetrForObjectDetection(config).eval()


def large() -> nn.Module:
    """Faster R-CNN R-50 as the paper has it, with offsets that move."""
    from deformscope.detectors.rcnn.rcnn import build

    torch.manual_seed(0)
    detector = build("faster_rcnn_r50_fpn", deformable="dconv_c3-c5").eval()
    for module in detector.modules():
        if isinstance(module, DeformConv):
            nn.init.normal_(module.conv_offset.weight, std=0.01)
    return detector


if __name__ == "__main__":
    main()

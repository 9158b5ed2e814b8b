"""What makes a training step lean, one lever at a time: how many times faster a step is with it than without.

    OMP_WAIT_POLICY=passive python benchmarks/levers.py

Prints a Markdown table. Networks are those of the recipes `animals` and `animals_two_stage` with random weights and
offsets, and Faster R-CNN R-50; what each lever does to AP stands in docs/training.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from models import Run, boxes, lean_detector, learning, randomise
from timing import arguments, interleaved, median, speed_up
from torch import Tensor

from deformscope.detectors.dense.config import DenseConfig, DenseRCNNConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.detectors.dense.dense_rcnn import DenseRCNN

CLASSES = tuple(f"class {i}" for i in range(20))
CANVAS, BATCH = (256, 320), 8
Pair = dict[str, Run]


def heads(detector: DenseDetector, maps: Callable[[], dict[str, Tensor]]) -> Callable[[], Tensor]:
    """The loss of a detector whose trunk's maps come from somewhere."""
    targets = boxes(BATCH, *CANVAS)
    return lambda: sum(detector.prediction_losses(detector.predict(maps()), targets).values(), torch.zeros(()))


def frozen_trunk() -> tuple[DenseDetector, Tensor, dict[str, Tensor]]:
    """The one-stage network, photos, and the trunk's maps of them."""
    model = DenseDetector(DenseConfig(CLASSES)).train()
    randomise(model)
    photos = torch.randn(BATCH, 3, *CANVAS)
    with torch.no_grad():
        maps = {name: value.contiguous() for name, value in model.trunk(photos).items()}
    return model, photos, maps


def cache() -> Pair:
    """The frozen trunk's maps from a cache."""
    model, photos, maps = frozen_trunk()
    last = torch.channels_last
    live = learning(model, heads(model, lambda: model.trunk(photos.to(memory_format=last))))
    return {"without": live, "with": learning(model, heads(model, lambda: maps))}


def channels_last() -> Pair:
    """The frozen trunk on channels-last photos."""
    model, photos, _ = frozen_trunk()

    def run(layout: torch.memory_format) -> Run:
        def forward() -> None:
            with torch.inference_mode():
                model.trunk(photos.contiguous(memory_format=layout))

        return forward

    return {"without": run(torch.contiguous_format), "with": run(torch.channels_last)}


def bf16() -> Pair:
    """bfloat16 autocast, the trunk's maps cached."""
    model, _, maps = frozen_trunk()
    loss = heads(model, lambda: maps)
    return {"without": learning(model, loss), "with": learning(model, loss, halved=True)}


def regions() -> Pair:
    """100 proposals and 64 RoIs a photo instead of 1000 and 256, the trunk's maps cached."""
    _, _, maps = frozen_trunk()
    pair = {}
    for name, config in (
        ("without", DenseRCNNConfig(CLASSES, proposals=1000, rois_per_image=256)),
        ("with", DenseRCNNConfig(CLASSES)),
    ):
        model = DenseRCNN(config).train()
        randomise(model)
        pair[name] = learning(model, heads(model, lambda: maps))
    return pair


def lean_heads() -> Pair:
    """Faster R-CNN R-50: 150 proposals, 64 RoIs and heads of width 256 instead of 2000, 512 and 1024."""
    photos, targets = list(torch.rand(4, 3, 256, 256)), boxes(4, 256, 256)

    def run(lean: bool) -> Run:
        model = lean_detector(256, lean=lean)
        return learning(model, lambda: sum(model(photos, targets).values(), torch.zeros(())))

    return {"without": run(False), "with": run(True)}


LEVERS: dict[str, Callable[[], Pair]] = {
    "one-stage: trunk's maps cached": cache,
    "one-stage: bf16 autocast": bf16,
    "its trunk alone: channels-last": channels_last,
    "two-stage animals: 100 proposals, 64 RoIs (not 1000, 256)": regions,
    "Faster R-CNN R-50, 4 × 256 px: lean heads": lean_heads,
}


def main() -> None:
    args = arguments(__doc__, rounds=5).parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s); ms a step of {BATCH} photos of 256×320 px\n")
    print("| lever | without | with | faster |\n|---|---|---|---|")
    for name, lever in LEVERS.items():
        spent = interleaved(lever(), args.rounds)
        without, with_ = (f"{median(spent[which]):.0f}" for which in ("without", "with"))
        print(f"| {name} | {without} | {with_} | ×{speed_up(spent, 'with', 'without'):.2f} |", flush=True)


if __name__ == "__main__":
    main()

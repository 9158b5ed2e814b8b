"""Whole models: what the deformable convolution costs them, with torchvision's operator and with ours.

    OMP_WAIT_POLICY=passive python benchmarks/models.py

Prints Markdown tables. The floor is the same network with plain convolutions and no offset convolutions: no operator,
however fast, can come nearer. Weights are random, offsets of every layer about 1.5 cells in size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from timing import arguments, interleaved, median, speed_up
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from deformscope import Placement
from deformscope.detectors.deform import DeformConv, set_offset_mode
from deformscope.detectors.dense.config import DenseConfig
from deformscope.detectors.dense.dense import DenseDetector
from deformscope.detectors.rcnn.rcnn import RCNN, ResNet, build
from deformscope.ops import deform_conv

Run = Callable[[], object]


def operator(name: str, model: nn.Module) -> None:
    """Let the model's deformable convolutions use ``torchvision``, ours (``auto``), or be ``plain``."""
    deform_conv.default_impl = "auto" if name == "plain" else name
    set_offset_mode(model, "none" if name == "plain" else "full")


def randomise(model: nn.Module) -> None:
    """Offsets of 1.5 cells, and residual branches small enough that random trunks stay finite."""
    torch.manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, DeformConv) and module.conv_offset.bias is not None:
            nn.init.normal_(module.conv_offset.bias, std=1.5)
        if name.endswith("bn3"):
            nn.init.constant_(module.weight, 0.2)


class Trunk(nn.Module):
    """ResNet-50-FPN as torchvision's detectors take it."""

    out_channels = 256

    def __init__(self, detector: RCNN) -> None:
        super().__init__()
        self.backbone: ResNet = detector.backbone
        self.neck = detector.neck

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.neck(OrderedDict(zip("0123", self.backbone(images), strict=True)))


def lean_detector(side: int) -> FasterRCNN:
    """Faster R-CNN with 300 proposals before and 150 after suppression, 64 RoIs a photo and heads of width 256."""
    model = FasterRCNN(
        Trunk(build("faster_rcnn_r50_fpn", deformable="mdconv_c3-c5", num_classes=20)),
        num_classes=None,
        box_head=TwoMLPHead(256 * 7**2, 256),
        box_predictor=FastRCNNPredictor(256, 21),
        min_size=side,
        max_size=side,
        rpn_pre_nms_top_n_train=300,
        rpn_post_nms_top_n_train=150,
        box_batch_size_per_image=64,
    )
    randomise(model)
    return model.train()


def boxes(n: int, height: int, width: int) -> list[dict[str, Tensor]]:
    """Three random objects a photo."""
    corner = torch.rand(n, 3, 2) * torch.tensor([width / 2, height / 2])
    size = torch.rand(n, 3, 2) * torch.tensor([width / 2 - 24, height / 2 - 24]) + 20
    return [{"boxes": box, "labels": torch.tensor([1, 5, 9])} for box in torch.cat([corner, corner + size], -1)]


def inference(side: int, whole: bool) -> dict[str, Run]:
    """One photo of side × 4/3 side px through the whole Faster R-CNN, or its trunk and pyramid."""
    model = build("faster_rcnn_r50_fpn", deformable="mdconv_c3-c5").eval()
    randomise(model)
    width = round(side * 4 / 3 / 32) * 32
    batch = torch.randn(1, 3, side, width, generator=torch.Generator().manual_seed(0))

    def run(name: str) -> Run:
        def detect() -> None:
            operator(name, model)
            with torch.inference_mode():
                _ = model.detect(batch, [Placement((side, width))]) if whole else model.pyramid(batch)

        return detect

    return {name: run(name) for name in ("torchvision", "auto", "plain")}


def learning(model: nn.Module, loss: Callable[[], Tensor], *, halved: bool = False) -> Run:
    """A training step: forward, backward, SGD without a learning rate, so that every step is the same."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)

    def step() -> None:
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=halved):
            total = loss()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()

    return step


def stepping(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Run]:
    """A training step with each operator, in float32 and under bf16 autocast."""

    def run(name: str, halved: bool) -> Run:
        step = learning(model, loss, halved=halved)

        def with_operator() -> None:
            operator(name, model)
            step()

        return with_operator

    names = ("torchvision", "auto", "plain")
    return {f"{name}{' bf16' * halved}": run(name, halved) for halved in (False, True) for name in names}


def rcnn_training(batch: int = 4, side: int = 256) -> dict[str, Run]:
    """A step of the lean Faster R-CNN."""
    model = lean_detector(side)
    photos, targets = list(torch.rand(batch, 3, side, side)), boxes(batch, side, side)
    return stepping(model, lambda: sum(model(photos, targets).values(), torch.zeros(())))


def dense_training(batch: int = 8) -> dict[str, Run]:
    """A step of the packaged detector's network, from cached maps of the frozen trunk, photos of 256 × 320 px."""
    classes = tuple(f"class {i}" for i in range(20))
    model = DenseDetector(DenseConfig(classes, shared=True, deform_layers=2)).train()
    randomise(model)
    sizes = {"stride8": (32, 32, 40), "stride16": (96, 16, 20), "stride32": (320, 8, 10)}
    maps = {name: torch.randn(batch, *size) for name, size in sizes.items()}
    targets = boxes(batch, 256, 320)

    def loss() -> Tensor:
        return sum(model.prediction_losses(model.predict(maps), targets).values(), torch.zeros(()))

    return stepping(model, loss)


def row(label: str, candidates: dict[str, Run], rounds: int) -> None:
    """Print a line: milliseconds, and how many times faster than torchvision's operator in float32."""
    spent = interleaved(candidates, rounds)
    ratios = {name: f" (×{speed_up(spent, name, 'torchvision'):.2f})" for name in list(candidates)[1:]}
    cells = [f"{median(spent[name]):.0f}{ratios.get(name, '')}" for name in candidates]
    print(f"| {label} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    args = arguments(__doc__, rounds=5).parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s); ms (speed-up over torchvision's operator)\n")
    print("| inference | torchvision | ours | plain |\n|---|---|---|---|")
    for side in (256, 512, 800):
        row(f"Faster R-CNN R-50, {side} px", inference(side, True), args.rounds)
        row(f"its trunk and pyramid, {side} px", inference(side, False), args.rounds)
    print("\n| training step | torchvision | ours | plain | torchvision, bf16 | ours, bf16 | plain, bf16 |")
    print("|---|---|---|---|---|---|---|")
    row("Faster R-CNN R-50, lean heads, 4 × 256 px", rcnn_training(), args.rounds)
    row("packaged detector, 8 × 256×320 px, cached trunk", dense_training(), args.rounds)


if __name__ == "__main__":
    main()

"""The deformable convolution alone: speed against torchvision's operator, plain convolution as the floor, peak memory.

    OMP_WAIT_POLICY=passive python benchmarks/deform_conv.py
    OMP_WAIT_POLICY=passive python benchmarks/deform_conv.py --memory

Prints Markdown tables. C→C 3×3, padding 1, with modulation, float32, offsets normal with σ = 2 cells.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from timing import arguments, interleaved, median, peak_bytes, speed_up
from torch import Tensor

from deformscope.ops import deform_conv2d

IMPLEMENTATIONS = ("torchvision", "embedding_bag", "auto", "plain")


class Shape(NamedTuple):
    """n images of c channels and size × size cells; groups and offset groups."""

    n: int
    c: int
    size: int
    groups: int = 1
    offset_groups: int = 1

    def __str__(self) -> str:
        extra = f", {self.groups} groups" * (self.groups > 1) + f", {self.offset_groups} offset groups" * (
            self.offset_groups > 1
        )
        return f"{self.n}×{self.c}×{self.size}{extra}"


SHAPES = (
    Shape(1, 64, 64),
    Shape(1, 128, 100),
    Shape(1, 256, 50),
    Shape(4, 128, 32),
    Shape(1, 512, 8),
    Shape(8, 96, 32),
    Shape(1, 256, 7),
    Shape(1, 64, 4),
    Shape(1, 128, 50, 1, 4),
    Shape(1, 128, 50, 32, 1),
    Shape(1, 128, 50, 128, 1),
)
LARGE = (Shape(2, 256, 100), Shape(1, 64, 64), Shape(1, 128, 100), Shape(1, 512, 8))


def tensors(shape: Shape) -> tuple[Tensor, ...]:
    """input, offset, weight, modulation and the output's gradient."""
    n, c, size, groups, g = shape
    random = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=random)

    leaves = normal(n, c, size, size), 2 * normal(n, 18 * g, size, size), normal(c, c // groups, 3, 3)
    modulation = normal(n, 9 * g, size, size).sigmoid()
    return *(leaf.requires_grad_() for leaf in (*leaves, modulation)), normal(n, c, size, size)


def runs(implementation: str, shape: Shape) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """The forward pass without gradients, and the forward and backward pass."""
    x, offset, weight, modulation, grad = tensors(shape)

    def call() -> Tensor:
        if implementation == "plain":
            return F.conv2d(x, weight, padding=1, groups=shape.groups)
        if implementation == "torchvision":
            return torchvision.ops.deform_conv2d(x, offset, weight, padding=1, mask=modulation)
        return deform_conv2d(x, offset, weight, padding=1, mask=modulation, impl=implementation)

    def forward() -> Tensor:
        with torch.inference_mode():
            return call()

    def both() -> None:
        x.grad = offset.grad = weight.grad = modulation.grad = None
        call().backward(grad)

    return forward, both


def speed(rounds: int) -> None:
    """Print the table of times and ratios."""
    print("| N×C×H | torchvision, ms | auto, ms | speed-up | embedding_bag forced | plain convolution |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        cells = []
        for which in (0, 1):
            spent = interleaved({name: runs(name, shape)[which] for name in IMPLEMENTATIONS}, rounds)
            times = [f"{median(spent[name]):.3g}" for name in ("torchvision", "auto")]
            ratios = [f"{speed_up(spent, name, 'torchvision'):.2f}" for name in ("auto", "embedding_bag", "plain")]
            cells.append(times + ratios)
        row = " | ".join(" / ".join(pair) for pair in zip(*cells, strict=True))
        print(f"| {shape} | {row} |", flush=True)


def memory() -> None:
    """Print the table of peak memory, every figure from a process of its own."""
    print("| N×C×H | " + " | ".join(f"{name}, MB" for name in IMPLEMENTATIONS if name != "auto") + " |")
    print("|---|---|---|---|")
    for shape in LARGE:
        row = []
        for name in IMPLEMENTATIONS:
            if name == "auto":
                continue
            peaks = []
            for which in ("forward", "both"):
                command = [sys.executable, __file__, "--peak", name, which, *map(str, shape)]
                peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1e6)
            row.append(" / ".join(f"{peak:.0f}" for peak in peaks))
        print(f"| {shape} | {' | '.join(row)} |", flush=True)


def peak(name: str, which: str, *sizes: str) -> None:
    """Print the peak bytes of one pass; a small one goes before, so that libraries have loaded."""
    shape, index = Shape(*map(int, sizes)), ("forward", "both").index(which)
    for run in runs(name, shape._replace(size=4)):
        run()
    print(peak_bytes(runs(name, shape)[index]))


def main() -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of speed")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        peak(*args.peak)
        return
    print(f"torch {torch.__version__}, {args.threads} thread(s); forward / forward + backward\n")
    if args.memory:
        memory()
    else:
        speed(args.rounds)


if __name__ == "__main__":
    main()

"""Where deformscope's own operator is observed, since a dispatcher sees only the operators that it is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Pair = tuple[int, int]
Step = tuple[float, float]
"""Whole numbers for convolutions."""


@dataclass(frozen=True)
class DeformCall:
    """One call of a deformable convolution, and its geometry: its tensors as torchvision's operator gets them."""

    input: Tensor
    weight: Tensor | None
    """None where no weights belong to the kernel's points."""
    offset: Tensor
    mask: Tensor | None
    output: Tensor
    kernel_size: Pair
    stride: Step
    padding: Step
    dilation: Pair
    made: Tensor | None = None
    """The offsets as the model made them, where they had to be put into torchvision's order; None: they are these."""
    channels_last: Tensor | None = None
    """The input as the model had it, where its channels came last."""
    absent: tuple[int, ...] = ()
    """Points of the kernel at which nothing is sampled."""
    places_output: bool = True
    """The output has a cell at each place to which a kernel belongs, and no others."""


Observer = Callable[[Callable[[], Tensor], Callable[[Tensor], DeformCall]], Tensor]
"""Runs the operator (first argument) and gives its output, which the second argument makes into a record."""


class _Local(threading.local):
    observer: Observer | None = None


local = _Local()
"""Who observes this thread's calls."""

"""Scale the gradient that flows back through a tensor."""

from __future__ import annotations

from torch import Tensor


def graded(tensor: Tensor, factor: float) -> Tensor:
    """The same values; in the backward pass, the gradient is multiplied by ``factor``."""
    if factor == 1:
        return tensor
    fixed = tensor.detach()
    return fixed if factor == 0 else fixed + factor * (tensor - fixed)

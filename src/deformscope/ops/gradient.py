"""How much of a gradient flows back through a tensor."""

from __future__ import annotations

from torch import Tensor


def graded(tensor: Tensor, factor: float) -> Tensor:
    """The same values, through which ``factor`` of the gradient flows back."""
    if factor == 1:
        return tensor
    fixed = tensor.detach()
    return fixed if factor == 0 else fixed + factor * (tensor - fixed)

"""Receptive fields averaged over noisy copies of the photo (Smilkov et al., 2017), of one seed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..detectors.preparation import network_size
from ..errors import DeformscopeError
from ..fields.field import Placement


def check(copies: int, noise: float) -> None:
    """Raise DeformscopeError for numbers that make no copies."""
    if copies < 0 or not 0 < noise < float("inf"):
        raise DeformscopeError(
            f"copies={copies}, noise={noise:g}: expected a number of noisy copies, 0 for none, and a positive deviation"
        )


def averaged(
    output: Callable[[Tensor], Tensor], image: Tensor, placement: Placement, copies: int, noise: float, seed: int
) -> Float[Tensor, "h w"]:
    """The mean over ``copies`` of Σ_c |∂y/∂I_c|, y = ``output`` of ``image`` with normal noise where the photo lies.

    The noise's standard deviation is ``noise`` times the range of the image's values on the photo.
    """
    generator = torch.Generator().manual_seed(seed)
    (high, wide), (top, left) = network_size(placement), (round(one) for one in placement.shift)
    still = image.detach()
    on_photo = torch.zeros_like(still)
    on_photo[..., max(top, 0) : top + high, max(left, 0) : left + wide] = 1
    values = still[on_photo > 0]
    deviation = noise * (values.max() - values.min())
    total = torch.zeros(still.shape[-2:], dtype=still.dtype, device=still.device)
    for _ in range(copies):
        random = torch.randn(still.shape, generator=generator, dtype=still.dtype).to(still.device)
        copy = (still + deviation * random * on_photo).requires_grad_()
        (gradient,) = torch.autograd.grad(output(copy), copy, allow_unused=True)
        if gradient is not None:
            total += gradient.reshape(-1, *total.shape).abs().sum(dim=0)
    return (total / copies).cpu()

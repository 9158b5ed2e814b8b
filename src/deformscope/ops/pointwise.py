"""1×1 convolutions on one thread of a CPU, by oneDNN instead of BLAS.

PyTorch gives 1×1 convolutions of small batches on one thread to BLAS (MKL as a rule), since that "is faster when
single-threaded", and with more threads to oneDNN. On AMD processors with AVX-512 oneDNN takes half to two thirds of the
time (other processors were not measured). A dilated convolution always goes to oneDNN, and to a 1×1 kernel dilation
does nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 20_480
"""An image alone of fewer numbers goes to neither: PyTorch's own limit (``ConvParams::use_mkldnn``)."""


class Pointwise(nn.Conv2d):
    """``nn.Conv2d`` of kernel 1×1. Whatever its attributes are set to later counts, as there."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        large = input.dim() == 4 and (len(input) > 1 or input.numel() > LEAST)
        fitting = input.is_cpu and input.dtype == torch.float32 and weight.shape[-2:] == (1, 1)
        plain = not large or not fitting or self.padding_mode != "zeros" or torch.compiler.is_compiling()
        if plain or not _dilation_decides():
            return super()._conv_forward(input, weight, bias)
        return F.conv2d(input, weight, bias, self.stride, self.padding, 2, self.groups)


def _dilation_decides() -> bool:
    """Whether dilation alone decides who computes this thread's float32 convolutions of kernel 1×1."""
    return (
        torch.get_num_threads() == 1
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def make_pointwise(model: nn.Module) -> None:
    """Make every convolution of this kind in ``model`` a :class:`Pointwise`, with the parameters and hooks it has."""
    for module in model.modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.groups == 1
        if plain and module.kernel_size == module.stride == (1, 1) and module.padding == (0, 0):
            module.__class__ = Pointwise

"""Columns times weight: the matrix product of a convolution, for any number of groups, and its gradients."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Contraction:
    """Multiplies columns ``[p g k c]`` (p cells, g offset groups, k points, c channels each) by a weight.

    The weight is permuted once to the order of the columns. If groups cut through offset groups, or the weight is
    larger than all columns (``cells`` is their number), the columns are permuted to the order of the weight instead.
    Depthwise weights, whose products would have a single channel, are multiplied elementwise.
    """

    def __init__(self, weight: Float[Tensor, "out ingroup kh kw"], groups: int, offset_groups: int, cells: int) -> None:
        self.shape, self.groups, self.g = weight.shape, groups, offset_groups
        out, ingroup, kh, kw = weight.shape
        self.depthwise = groups > 1 and ingroup == 1
        self.relaid = offset_groups % groups == 0 and cells > out
        if self.depthwise:
            split = weight.reshape(offset_groups, groups // offset_groups, out // groups, kh * kw)
            self.matrix = split.permute(2, 0, 3, 1).contiguous()  # multiplier g k c
        elif self.relaid:
            inner = offset_groups // groups
            split = weight.reshape(groups, out // groups, inner, ingroup // inner, kh * kw)
            self.matrix = split.transpose(3, 4).reshape(groups, out // groups, -1)
        else:
            self.matrix = weight.reshape(groups, out // groups, -1)

    def as_weight(self, matrix: Tensor) -> Float[Tensor, "out ingroup kh kw"]:
        """The weight, or its gradient, in its usual layout, from ``matrix``."""
        out, ingroup, kh, kw = self.shape
        if self.depthwise:
            return matrix.permute(1, 3, 0, 2).reshape(self.shape)
        if self.relaid:
            inner = self.g // self.groups
            split = matrix.view(self.groups, out // self.groups, inner, kh * kw, ingroup // inner)
            return split.transpose(3, 4).reshape(self.shape)
        return matrix.reshape(self.shape)

    def forward(self, columns: Float[Tensor, "p g k c"]) -> Float[Tensor, "out p"]:
        """The channels of the output at every cell."""
        p, out = len(columns), self.shape[0]
        if self.depthwise:
            parts = [(columns * matrix).sum(2).view(p, -1) for matrix in self.matrix]
            return torch.stack(parts, -1).view(p, out).t()
        return _product(self.matrix, self._by_group(columns).transpose(1, 2)).view(out, p)

    def grad_columns(self, grad: Float[Tensor, "out p"]) -> Float[Tensor, "p g k c"]:
        """The gradient of the columns, from that of the output."""
        p, (_, ingroup, kh, kw) = grad.shape[1], self.shape
        if self.depthwise:
            total = torch.zeros((), dtype=grad.dtype, device=grad.device)
            for part, matrix in zip(self._by_multiplier(grad), self.matrix, strict=True):
                total = total + part * matrix
            return total
        product = _product(grad.reshape(self.groups, -1, p).transpose(1, 2), self.matrix).transpose(0, 1)
        channels = ingroup * self.groups // self.g
        if self.relaid:
            return product.reshape(p, self.g, kh * kw, channels)
        return product.reshape(p, self.g, channels, kh * kw).transpose(2, 3).contiguous()

    def grad_matrix(self, grad: Float[Tensor, "out p"], columns: Float[Tensor, "p g k c"]) -> Tensor:
        """The gradient of ``matrix``; :meth:`as_weight` converts it to that of the weight."""
        if self.depthwise:
            return torch.stack([(part * columns).sum(0) for part in self._by_multiplier(grad)])
        return _product(grad.reshape(self.groups, -1, grad.shape[1]), self._by_group(columns))

    def _by_group(self, columns: Float[Tensor, "p g k c"]) -> Float[Tensor, "groups p l"]:
        ordered = columns if self.relaid else columns.transpose(2, 3)
        return ordered.reshape(len(columns), self.groups, -1).transpose(0, 1)

    def _by_multiplier(self, grad: Float[Tensor, "out p"]) -> Float[Tensor, "multiplier p g 1 c"]:
        split = grad.reshape(self.g, self.groups // self.g, -1, grad.shape[1])
        return split.permute(2, 3, 0, 1).contiguous().unsqueeze(3)


# oneDNN's product of float32 matrices, which PyTorch itself reaches only for other dtypes and in compiled graphs. BLAS
# is MKL as a rule, which leaves half of an AMD processor's vector width unused: 90 to 110 against 200 to 240 GFLOP/s.
_onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
SMALL_PRODUCT = 1 << 24
"""Multiplications below which oneDNN's preparations take longer than what it saves."""


def _product(a: Float[Tensor, "groups r l"], b: Float[Tensor, "groups l s"]) -> Float[Tensor, "groups r s"]:
    # A batched product with a batch of one is slower than a plain product, in bfloat16 nearly twice.
    if len(a) > 1:
        return torch.bmm(a, b)
    left, right = a[0], b[0]
    worth = left.numel() * right.shape[1] >= SMALL_PRODUCT
    if _onednn is not None and worth and left.dtype == torch.float32 and left.is_cpu and torch.backends.mkldnn.enabled:
        return _onednn(left, right.t(), None, "none", [], "")[None]
    return torch.mm(left, right)[None]

"""The two viewpoints of an offset field (Zhang et al., ICPRAM 2021): Eq. 2-4 and the radius of the circles.

Functions of tensors on any device, differentiable. Offsets and displacements are in cells of the input feature map; the
last axis is (dy, dx).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import DeformscopeError


def split(
    offset: Float[Tensor, "n g k h w 2"],
) -> tuple[Float[Tensor, "n g 1 h w 2"], Float[Tensor, "n g k h w 2"]]:
    """Split offsets into the feature-map viewpoint d_f (Eq. 2) and the kernel viewpoint d_k = Δp − d_f (Eq. 3).

    Example:
        >>> d_f, d_k = ds.split(torch.randn(1, 1, 9, 5, 7, 2))
        >>> d_f.shape, d_k.shape
        (torch.Size([1, 1, 1, 5, 7, 2]), torch.Size([1, 1, 9, 5, 7, 2]))
    """
    d_f = offset.mean(dim=2, keepdim=True)
    return d_f, offset - d_f


def divergence(d_f: Float[Tensor, "*maps h w 2"], stride: tuple[float, float] = (1, 1)) -> Float[Tensor, "*maps h w"]:
    """div = ∂x d_f,x + ∂y d_f,y (Eq. 4), in 1/cell; negative where features converge.

    Central differences inside, one-sided at the border; zero along an axis with a single cell. Neighbouring output
    cells are ``stride`` (y, x) input cells apart; with it, a field that contracts to a point has −2 at any stride.

    Example:
        >>> y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
        >>> ds.divergence(torch.stack([2 - y, 3 - x], dim=-1)).unique()     # all cells point to cell (2, 3)
        tensor([-2.])
    """
    return _slope(d_f[..., 0], -2, stride[0]) + _slope(d_f[..., 1], -1, stride[1])


def _slope(values: Float[Tensor, "*maps h w"], axis: int, spacing: float) -> Float[Tensor, "*maps h w"]:
    if values.shape[axis] < 2:
        return torch.zeros_like(values)
    return torch.gradient(values, spacing=float(spacing), dim=axis)[0]


def extent(
    d_k: Float[Tensor, "n g k h w 2"],
    kernel_size: tuple[int, int] | None = None,
    dilation: tuple[int, int] = (0, 0),
) -> tuple[Float[Tensor, "n g h w"], Float[Tensor, "n g h w"]]:
    """Height and width of d_k, in cells.

    Height is dy of the bottom row minus dy of the top row, width is dx of the right column minus dx of the left one,
    averaged over the points of the rows and columns. As in the paper, the extent of the regular grid is not included;
    ``dilation`` (y, x) adds it. Negative if the kernel is contracted. d_f cancels.

    Example:
        >>> grid = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij"), dim=-1)
        >>> height, width = ds.extent(grid.view(1, 1, 9, 1, 1, 2) * torch.tensor([1.0, 2.0]))
        >>> height.item(), width.item()
        (2.0, 4.0)
    """
    rows, columns = kernel_size or _square(d_k.shape[2])
    if rows * columns != d_k.shape[2]:
        raise DeformscopeError(f"kernel_size={kernel_size}: expected rows · columns = {d_k.shape[2]} kernel points")
    grid = d_k.unflatten(2, (rows, columns))
    height = (grid[:, :, -1, :, ..., 0] - grid[:, :, 0, :, ..., 0]).mean(dim=2)
    width = (grid[:, :, :, -1, ..., 1] - grid[:, :, :, 0, ..., 1]).mean(dim=2)
    return height + dilation[0] * (rows - 1), width + dilation[1] * (columns - 1)


def radius(
    d_k: Float[Tensor, "n g k h w 2"],
    kernel_size: tuple[int, int] | None = None,
    dilation: tuple[int, int] = (0, 0),
) -> Float[Tensor, "n g h w"]:
    """Circle radius r = sqrt(width · height) of d_k, in cells (Zhang et al., Fig. 3).

    Width and height are those of :func:`extent`; negative ones count as zero, so that a kernel that is contracted along
    both axes does not count as extended.

    Example:
        >>> grid = torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij"), dim=-1)
        >>> ds.radius(grid.view(1, 1, 9, 1, 1, 2) * torch.tensor([1.0, 4.0])).item()     # sqrt(2 · 8)
        4.0
    """
    height, width = extent(d_k, kernel_size, dilation)
    area = height.clamp(min=0) * width.clamp(min=0)
    spread = area > 0
    # The derivative of the root at zero is infinite, and its gradient would be NaN even when multiplied by zero.
    return torch.where(spread, torch.where(spread, area, 1).sqrt(), 0)


def _square(points: int) -> tuple[int, int]:
    side = math.isqrt(points)
    if side * side != points:
        raise DeformscopeError(f"kernel_size: {points} kernel points are no square; give kernel_size=(rows, columns)")
    return side, side

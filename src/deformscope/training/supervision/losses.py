"""Losses on offsets from boxes, as in RepPoints and Cascade RPN (Yang et al., ICCV 2019; Vu et al., NeurIPS 2019).

They can be used with any deformable convolution and pull a cell's kernel to the box of the cell. Lengths are in network
px, (y, x); each loss has one value per cell, the mean over offset groups, axes and kernel points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from ...fields.field import OffsetField
from ...fields.viewpoint import extent, split

FILL = 0.8
"""Extent of the outer kernel points relative to the box's half sides, so that they lie inside the box."""
LEAST_EXTENT = 0.2
"""Smallest extent, in cells, so that the logarithm stays finite for contracted kernels."""
BETA = 1 / 9
"""Transition of SmoothL1 from square to linear."""


@dataclass(frozen=True)
class Kernels:
    """The kernels of m cells, network px."""

    centre: Float[Tensor, "m g 2"]
    """p0 + d_f: the middle of the kernel (Zhang et al., ICPRAM 2021, Eq. 2)."""
    extent: Float[Tensor, "m g 2"]
    """Height and width of the kernel, d_k and regular grid together; at least :data:`LEAST_EXTENT`."""
    points: Float[Tensor, "m g k 2"]
    """The sampling points."""
    lattice: Float[Tensor, "k 2"]
    """Regular places of the kernel points, −1 to 1 over rows and columns."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of the m cells, network px."""

    centre: Float[Tensor, "m 2"]
    half: Float[Tensor, "m 2"]
    """Half height and half width."""


def kernels_of(field: OffsetField, image: Tensor, y: Tensor, x: Tensor) -> Kernels:
    """The kernels of the output cells (image, y, x), each ``[m]``."""
    d_f, d_k = split(field.offset)
    height, width = extent(d_k, field.kernel_size, field.dilation)
    pixels = field.offset.new_tensor(field.input_cells.reduction)
    least = LEAST_EXTENT * pixels.abs()
    middle = field.centres() + d_f[:, :, 0]
    # Advanced indices around a slice come first: [m g 2].
    return Kernels(
        field.input_cells.to_network(middle[image, :, y, x]),
        torch.maximum(torch.stack([height, width], dim=-1)[image, :, y, x] * pixels, least),
        field.input_cells.to_network(field.sampling_points()[image, :, :, y, x]),
        lattice(field.kernel_size).to(pixels),
    )


def lattice(kernel_size: tuple[int, int]) -> Float[Tensor, "k 2"]:
    """Regular places of a kernel's points, row-major, −1 to 1 over rows and columns; 0 for a single row or column."""
    axes = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in kernel_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def centre(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_f: SmoothL1 of the distance from p0 + d_f to the box's centre, relative to the box's sides."""
    gap = (kernels.centre - boxes.centre[:, None]) / (2 * boxes.half[:, None])
    return _smooth(gap).mean(dim=(1, 2))


def spread(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_k: SmoothL1 of the logarithm of the kernel's extent relative to :data:`FILL` times that of the box; independent
    of d_f."""
    ratio = kernels.extent / (2 * FILL * boxes.half[:, None])
    return _smooth(ratio.log()).mean(dim=(1, 2))


def box(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_box: 1 − GIoU of the box with the one around p0 + d_f of which the kernel's extent is :data:`FILL`."""
    half = kernels.extent / (2 * FILL)
    found = torch.cat([kernels.centre - half, kernels.centre + half], dim=-1)
    truth = torch.cat([boxes.centre - boxes.half, boxes.centre + boxes.half], dim=-1)[:, None].expand_as(found)
    loss = generalized_box_iou_loss(found.flatten(0, 1), truth.flatten(0, 1))
    return loss.view(found.shape[:2]).mean(dim=1)


def inside(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_in, the weakest: distance of points outside the box from it, in its half sides; zero inside."""
    reach = (kernels.points - boxes.centre[:, None, None]).abs() / boxes.half[:, None, None]
    return (reach - 1).relu().mean(dim=(1, 2, 3))


def on_lattice(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_lattice, the strongest: every point at its place of a regular grid over the box, as in Cascade RPN."""
    places = boxes.centre[:, None] + boxes.half[:, None] * kernels.lattice  # [m k 2]
    return _smooth((kernels.points - places[:, None]) / (2 * boxes.half[:, None, None])).mean(dim=(1, 2, 3))


LOSSES: dict[str, Callable[[Kernels, Boxes], Tensor]] = {
    "centre": centre,
    "extent": spread,
    "box": box,
    "inside": inside,
    "lattice": on_lattice,
}
"""The losses by their names in :class:`~deformscope.training.supervision.OffsetSupervision` and recipes."""
NEED_SIDES = ("extent", "box", "lattice")
"""Losses that are undefined for a kernel with a single row or column."""


def _smooth(gap: Tensor) -> Tensor:
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none", beta=BETA)

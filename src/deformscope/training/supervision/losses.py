"""Losses that tell a deformable kernel where its object is and how large: RepPoints' and Cascade RPN's supervision
(Yang et al., ICCV 2019; Vu et al., NeurIPS 2019) for any deformable convolution.

A cell's kernel is asked to lie on the box that the cell belongs to. All lengths are network px, (y, x); each loss gives
one value a cell, the mean over offset groups, axes and kernel points.
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
"""The outer kernel points' share of the box's half sides: they shall lie inside the box."""
LEAST_EXTENT = 0.2
"""Cells. Kernels drawn together further than that count as that wide, so that the logarithm stays finite."""
BETA = 1 / 9
"""Where SmoothL1 turns from a square into a line."""


@dataclass(frozen=True)
class Kernels:
    """Where the kernels of m cells look, network px."""

    centre: Float[Tensor, "m g 2"]
    """p0 + d_f: the middle of the kernel (Zhang et al., ICPRAM 2021, Eq. 2)."""
    extent: Float[Tensor, "m g 2"]
    """Height and width over which d_k spreads it, its regular grid's own included; at least :data:`LEAST_EXTENT`."""
    points: Float[Tensor, "m g k 2"]
    """The sampling points."""
    lattice: Float[Tensor, "k 2"]
    """The kernel's regular places, −1 to 1 over its rows and columns."""


@dataclass(frozen=True)
class Boxes:
    """The m cells' boxes, network px."""

    centre: Float[Tensor, "m 2"]
    half: Float[Tensor, "m 2"]
    """Half height and half width."""


def kernels_of(field: OffsetField, image: Tensor, y: Tensor, x: Tensor) -> Kernels:
    """The kernels of the output cells (image, y, x), each ``[m]``."""
    d_f, d_k = split(field.offset)
    height, width = extent(d_k, field.kernel_size, field.dilation)
    pixels = field.offset.new_tensor(field.cells.reduction)
    least = LEAST_EXTENT * pixels.abs()
    middle = field.centres() + d_f[:, :, 0]
    # Advanced indices around a slice come first: [m g 2].
    return Kernels(
        field.cells.to_network(middle[image, :, y, x]),
        torch.maximum(torch.stack([height, width], dim=-1)[image, :, y, x] * pixels, least),
        field.cells.to_network(field.sampling_points()[image, :, :, y, x]),
        lattice(field.kernel_size).to(pixels),
    )


def lattice(kernel_size: tuple[int, int]) -> Float[Tensor, "k 2"]:
    """The regular places of a kernel's points, row-major, −1 to 1 over its rows and columns; 0 along a single one."""
    axes = [torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in kernel_size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)


def centre(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_f: SmoothL1 of the distance of p0 + d_f to the box's centre, in the box's sides."""
    gap = (kernels.centre - boxes.centre[:, None]) / (2 * boxes.half[:, None])
    return _smooth(gap).mean(dim=(1, 2))


def spread(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_k: SmoothL1 of the logarithm of the kernel's extent over :data:`FILL` of the box's; d_f plays no part."""
    ratio = kernels.extent / (2 * FILL * boxes.half[:, None])
    return _smooth(ratio.log()).mean(dim=(1, 2))


def box(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_box: 1 − GIoU of the box around p0 + d_f that the kernel's extent fills to :data:`FILL`, with the box."""
    half = kernels.extent / (2 * FILL)
    found = torch.cat([kernels.centre - half, kernels.centre + half], dim=-1)
    truth = torch.cat([boxes.centre - boxes.half, boxes.centre + boxes.half], dim=-1)[:, None].expand_as(found)
    loss = generalized_box_iou_loss(found.flatten(0, 1), truth.flatten(0, 1))
    return loss.view(found.shape[:2]).mean(dim=1)


def inside(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_in, the mildest: how far points lie beyond the box, in its half sides; nothing inside."""
    reach = (kernels.points - boxes.centre[:, None, None]).abs() / boxes.half[:, None, None]
    return (reach - 1).relu().mean(dim=(1, 2, 3))


def on_lattice(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_lattice, the strongest: every point at its own place of a regular grid over the box, as in Cascade RPN."""
    places = boxes.centre[:, None] + boxes.half[:, None] * kernels.lattice  # [m k 2]
    return _smooth((kernels.points - places[:, None]) / (2 * boxes.half[:, None, None])).mean(dim=(1, 2, 3))


LOSSES: dict[str, Callable[[Kernels, Boxes], Tensor]] = {
    "centre": centre,
    "extent": spread,
    "box": box,
    "inside": inside,
    "lattice": on_lattice,
}
"""By the names that :class:`~deformscope.training.supervision.OffsetSupervision` and recipes take."""
NEED_SIDES = ("extent", "box", "lattice")
"""Those that say nothing to a kernel of one row or column."""


def _smooth(gap: Tensor) -> Tensor:
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none", beta=BETA)

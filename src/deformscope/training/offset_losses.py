"""Losses on offsets from boxes, as in RepPoints (Yang et al., ICCV 2019), and which box each cell gets.

They can be used with any deformable convolution and pull a cell's kernel to the box of the cell. Lengths are in network
px, (y, x); each loss has one value per cell, the mean over offset groups and axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.viewpoint import extent, split
from .sources import boxes_of

Target = Mapping[str, Tensor] | Tensor
"""``boxes`` (xyxy [t 4]), or torchvision's dictionary with ``boxes`` or ``masks`` (bool [t h w]) and optionally
``ignore`` (bool [t]; cells of such a box are not supervised)."""
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
    )


def centre(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_f: SmoothL1 of the distance from p0 + d_f to the box's centre, relative to the box's sides."""
    gap = (kernels.centre - boxes.centre[:, None]) / (2 * boxes.half[:, None])
    return _smooth(gap).mean(dim=(1, 2))


def spread(kernels: Kernels, boxes: Boxes) -> Float[Tensor, " m"]:
    """L_k: SmoothL1 of the logarithm of the kernel's extent relative to :data:`FILL` times that of the box; independent
    of d_f."""
    ratio = kernels.extent / (2 * FILL * boxes.half[:, None])
    return _smooth(ratio.log()).mean(dim=(1, 2))


LOSSES: dict[str, Callable[[Kernels, Boxes], Tensor]] = {"centre": centre, "extent": spread}
"""The losses by their names in :class:`~deformscope.training.OffsetSupervision` and recipes."""


def _smooth(gap: Tensor) -> Tensor:
    return F.smooth_l1_loss(gap, torch.zeros_like(gap), reduction="none", beta=BETA)


def checked(targets: Sequence[Target], images: int, within: str) -> list[dict[str, Tensor]]:
    """The targets as dictionaries with ``boxes``, ``ignore`` and, if ``within`` is ``"mask"``, ``masks``.

    Without boxes, those of the masks are used. Raises DeformscopeError for anything but boxes with an area, one entry
    per image.
    """
    if len(targets) != images:
        raise DeformscopeError(f"targets: {len(targets)} for {images} images; expected a list with one entry an image")
    return [_checked(target, index, within) for index, target in enumerate(targets)]


def _checked(target: Target, index: int, within: str) -> dict[str, Tensor]:
    given: dict[str, Any] = {"boxes": target} if isinstance(target, Tensor) else dict(target)
    where, masks = f"targets[{index}]", given.get("masks")
    if within == "mask" and masks is None:
        raise DeformscopeError(f"{where}: no 'masks', which within='mask' needs; give them, or within='box'")
    if masks is not None and (masks.ndim != 3 or not bool(masks.flatten(1).any(dim=1).all())):
        raise DeformscopeError(f"{where}['masks'] of shape {tuple(masks.shape)}: expected [t h w], each with a pixel")
    boxes = given.get("boxes")
    if boxes is None:
        if masks is None:
            raise DeformscopeError(f"{where}: {', '.join(given) or 'nothing'}; expected 'boxes', xyxy in network px")
        boxes = boxes_of(masks)
    boxes = boxes.float().reshape(0, 4) if boxes.numel() == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DeformscopeError(f"{where}['boxes'] of shape {tuple(boxes.shape)}: expected [t 4], xyxy in network px")
    without = ~((boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1))
    if bool(without.any()):
        raise DeformscopeError(
            f"{where}['boxes']: {boxes[without][0].tolist()} has no area; expected x1 < x2 and y1 < y2; "
            "leave such boxes out"
        )
    ignore = given.get("ignore")
    if ignore is None:
        ignore = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if ignore.shape != (len(boxes),) or (masks is not None and len(masks) != len(boxes)):
        raise DeformscopeError(f"{where}: {len(boxes)} boxes; expected as many 'ignore' and 'masks'")
    found = {"boxes": boxes, "ignore": ignore}
    return found | {"masks": masks} if within == "mask" and masks is not None else found


def assigned(
    centres: Float[Tensor, "h w 2"], target: Mapping[str, Tensor], sizes: tuple[float, float]
) -> Int[Tensor, "h w"]:
    """Index of each cell's box: the smallest around its centre (y, x) with a sqrt(area) in ``sizes``; −1 for none.

    With ``masks`` in ``target``, a cell has to lie on the object.
    """
    boxes = target["boxes"]
    if not len(boxes):
        return torch.full(centres.shape[:2], -1, dtype=torch.long, device=centres.device)
    y, x = centres[..., None, :].unbind(-1)
    within = (x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])
    if "masks" in target:
        masks = target["masks"].bool()
        row, column = (centres[..., axis].floor().long().clamp(0, masks.shape[1 + axis] - 1) for axis in (0, 1))
        within = within & masks[:, row, column].movedim(0, -1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    size = area.sqrt()
    smallest, index = torch.where(within & (size >= sizes[0]) & (size < sizes[1]), area, torch.inf).min(dim=-1)
    return torch.where(smallest.isfinite() & ~target["ignore"][index], index, -1)

"""The heads of a dense detector, and how boxes are decoded: from the cell, or from where the cell's kernel samples.

The paper names as future work the "utilization of the two properties of the offset fields in the prediction branches"
(Zhang et al., ICPRAM 2021, Section 5). With ĉ = p0 + s·d_f, the middle of the kernel, and b̂ = s·e/2·exp a, half of
its extent e (the regular grid's own included) times a learned factor per axis:

| name | box | residual t, of the box layer |
|---|---|---|
| D0 | the distances s·exp t from p0 to the four sides: FCOS (Tian et al., ICCV 2019) | distances |
| D0c | centre p0 + b·t_xy, half sides b·exp t_wh, with b = s·exp 1: D2 without offsets, a control | 0 at first |
| D2 | centre ĉ + b̂·t_xy, half sides b̂·exp t_wh | 0 at first |

Without offsets and with a residual of zero all of them give the same box, the square of half side s·exp 1 around p0.
Of stacked deformable convolutions the offsets are composed (:func:`deformscope.fields.stack.composed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ...fields.field import OffsetField
from ...fields.places import CellGrid
from ...fields.stack import composed
from ...fields.viewpoint import extent, split
from ...ops.gradient import graded
from ..deform import DeformConv
from .config import FROM_CELL, DenseConfig
from .masks import PARAMETERS

LEAST_EXTENT = 0.2
"""Cells; kernels drawn together further than that count as that wide."""
LARGEST = 5.0
"""Of the logarithm of a distance or half side over s."""


class HeadOutput(NamedTuple):
    """What a head gives for every cell of its level, ``[n c h w]``."""

    logits: Tensor
    """Of the classes."""
    box: Tensor
    """The input of the box decoder."""
    iou: Tensor
    """IoU logits."""
    offsets: list[Tensor]
    """Of the head's layers, lowest first; left out where boxes are decoded from the cell."""
    mask: Tensor | None
    """The weights of the masks' dynamic layer, if there is one."""


class LevelHead(nn.Module):
    """The head of a level: deformable 3×3, GroupNorm, ReLU (one or more times), then 1×1 convolutions.

    Without deformable convolutions: GroupNorm, ReLU, 1×1 convolutions.
    """

    def __init__(self, config: DenseConfig, classes: int) -> None:
        super().__init__()
        channels = config.channels

        def deform() -> DeformConv:
            return DeformConv(channels, channels, modulated=config.modulated, offset_mode=config.offset_mode)

        self.before = nn.Sequential()
        for _ in range(config.deform_layers - 1):
            self.before.extend([deform(), nn.GroupNorm(channels // 8, channels), nn.ReLU()])
        self.deform = deform() if config.deform_layers else nn.Identity()
        self.norm = nn.GroupNorm(channels // 8, channels)
        self.mix = nn.Conv2d(channels, 2 * channels, 1)
        self.cls = nn.Conv2d(2 * channels, classes, 1)
        self.box = nn.Conv2d(2 * channels, 4, 1)
        self.iou = nn.Conv2d(2 * channels, 1, 1)
        # The class bias corresponds to a prior of 1 %, for the focal loss (Lin et al., ICCV 2017).
        for layer, bias in ((self.cls, -4.6), (self.box, 1.0 if config.decode == "D0" else 0.0), (self.iou, 0.0)):
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias = nn.Parameter(torch.full((layer.out_channels,), bias))
        # Created last, so that the others have the same initial weights whichever way boxes are decoded.
        self.from_cell = config.decode in FROM_CELL
        if not self.from_cell:
            self.log_scale = nn.Parameter(torch.full((2,), 1.0))
        if config.mask_terms:
            self.controller = nn.Conv2d(2 * channels, PARAMETERS, 1)
            nn.init.normal_(self.controller.weight, std=0.01)
        self.task_gradient = 1.0
        """Factor on the boxes' gradient into the offsets, where boxes are decoded from them."""

    def forward(self, x: Tensor) -> HeadOutput:
        """The predictions of a level of the pyramid."""
        offsets: list[Tensor] = []
        for layer in (*self.before, self.deform):
            if isinstance(layer, DeformConv) and not self.from_cell:
                offset, modulation = layer.offsets(x)
                offsets.append(graded(offset, self.task_gradient))
                x = layer(x, (offset, modulation))
            else:
                x = layer(x)
        x = F.relu(self.mix(F.relu(self.norm(x))))
        mask = self.controller(x) if hasattr(self, "controller") else None
        return HeadOutput(self.cls(x), self.box(x), self.iou(x), offsets, mask)


def share(own: nn.Module, other: nn.Module) -> None:
    """Share the parameters of ``own`` with ``other``, a module of the same kind; capture still distinguishes the
    modules."""
    for name, parameter in own.named_parameters():
        place, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(place), leaf, parameter)


def decoded(
    decode: str,
    centre: Float[Tensor, "p 2"],
    stride: int,
    raw: Float[Tensor, "n p 4"],
    offsets: Sequence[Float[Tensor, "n moves h w"]] = (),
    log_scale: Float[Tensor, " 2"] | None = None,
) -> Float[Tensor, "n p 4"]:
    """Boxes xyxy, network px, of cells with ``centre`` (x, y) px.

    ``raw`` is the box layer's; D2 also needs the ``offsets`` of the head's layers, lowest first, and ``log_scale``, a
    (x, y).
    """
    if decode == "D0":
        reach = raw.clamp(max=LARGEST).exp() * stride
        return torch.cat([centre - reach[..., :2], centre + reach[..., 2:]], dim=-1)
    if decode == "D0c":
        middle, half = centre, raw.new_full((2,), stride).mul(raw.new_ones(()).exp())
    else:
        assert log_scale is not None
        shift, half = kernels(offsets, stride)
        middle, half = centre + shift, half * log_scale.float().exp()
    middle, half = middle + half * raw[..., :2], half * raw[..., 2:].clamp(max=LARGEST - 1).exp()
    return torch.cat([middle - half, middle + half], dim=-1)


def kernels(
    offsets: Sequence[Float[Tensor, "n moves h w"]], stride: int
) -> tuple[Float[Tensor, "n p 2"], Float[Tensor, "n p 2"]]:
    """s·d_f and s·e/2 of the kernels of stacked 3×3 layers, (x, y) in px; e at least :data:`LEAST_EXTENT` cells."""
    fields = [OffsetField.from_tensor(offset).at(CellGrid()) for offset in offsets]
    field = fields[0] if len(fields) == 1 else composed(fields)
    d_f, d_k = split(field.offset)
    size = torch.stack(extent(d_k, field.kernel_size, field.dilation), dim=-1)[:, 0].clamp(min=LEAST_EXTENT)
    return stride * d_f[:, 0, 0].flatten(1, 2).flip(-1), stride * size.flatten(1, 2).flip(-1) / 2

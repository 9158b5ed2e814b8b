"""Boxes of the dense detector: from the cell, or from where the cell's kernel looks.

The paper names as future work the "utilization of the two properties of the offset fields in the prediction branches"
(Zhang et al., ICPRAM 2021, Section 5). With ĉ = p0 + s·d_f, the middle of the kernel, and b̂ = s·e/2·exp a, half of
its extent e (the regular grid's own included) times a learned factor an axis:

| name | box | residual t, of the box layer |
|---|---|---|
| D0 | the distances s·exp t from p0 to the four sides: FCOS (Tian et al., ICCV 2019) | distances |
| D0c | centre p0 + b·t_xy, half sides b·exp t_wh, with b = s·exp 1: D2 without offsets, a control | 0 at first |
| D1 | ĉ ± b̂, without a box layer | none |
| D2 | centre ĉ + b̂·t_xy, half sides b̂·exp t_wh | 0 at first |
| D3 | D2 with ĉ and e detached: the boxes' gradient does not reach the offsets through them | 0 at first |
| D4 | D0, of which the predictions know (d_f, e) as four more inputs | distances |
| D5 | mean ± standard deviation of the kernel points · exp a: RepPoints' moment (Yang et al., ICCV 2019) | none |
| D6 | middle ± half of the kernel points' extremes · exp a: RepPoints' min-max | none |

Without offsets and with a residual of zero all of them give the same box, the square of half side s·exp 1 around p0.
Of stacked deformable convolutions the offsets are composed (:func:`deformscope.fields.stack.composed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ...fields.field import OffsetField
from ...fields.stack import composed
from ...fields.viewpoint import extent, split

Decode = Literal["D0", "D0c", "D1", "D2", "D3", "D4", "D5", "D6"]
DECODES: tuple[Decode, ...] = get_args(Decode)
FROM_CELL = ("D0", "D0c")
FROM_KERNEL_ALONE = ("D1", "D5", "D6")
"""Without a box layer."""
SCALED = ("D1", "D2", "D3", "D5", "D6")
"""With a learned factor on the kernel's size."""
BIAS = {name: 1.0 if name in ("D0", "D4") else 0.0 for name in DECODES}
"""Of the box layer."""
LOG_SCALE = dict.fromkeys(SCALED, 1.0) | {"D5": 1.0 - 0.5 * float(torch.log(torch.tensor(2 / 3)))}
"""The factor a at first; the standard deviation of −1, 0, 1 is √⅔."""
LEAST_EXTENT = 0.2
"""Cells; kernels drawn together further than that count as that wide."""
LARGEST = 5.0
"""Of the logarithm of a distance or half side over s."""


@dataclass(frozen=True)
class Kernels:
    """Where the kernels of p cells look, (x, y) in px; displacements from p0."""

    shift: Float[Tensor, "n p 2"]
    """s·d_f."""
    half: Float[Tensor, "n p 2"]
    """s·e/2, from half of :data:`LEAST_EXTENT` on."""
    points: Float[Tensor, "n p k 2"]
    """The sampling points from p0."""


def seen(offsets: Sequence[Float[Tensor, "n moves h w"]], stride: int) -> Kernels:
    """Where the kernels of stacked 3×3 layers look, from their offsets, lowest first."""
    d_f, size, points = _parts(offsets)
    return Kernels(
        stride * d_f.flatten(1, 2).flip(-1),
        stride * size.flatten(1, 2).flip(-1) / 2,
        stride * points.movedim(1, 3).flatten(1, 2).flip(-1),
    )


def numbers(offsets: Sequence[Float[Tensor, "n moves h w"]]) -> Float[Tensor, "n 4 h w"]:
    """d_f and the extent in cells, (y, x) each: what D4 tells the predictions."""
    d_f, size, _ = _parts(offsets)
    return torch.cat([d_f, size], dim=-1).movedim(-1, 1)


def boxes(
    decode: str,
    centre: Float[Tensor, "p 2"],
    stride: int,
    raw: Float[Tensor, "n p 4"] | None,
    kernels: Kernels | None,
    log_scale: Float[Tensor, " 2"] | None,
) -> Float[Tensor, "n p 4"]:
    """xyxy, network px, of cells with ``centre`` (x, y) px.

    ``raw`` is the box layer's, None for :data:`FROM_KERNEL_ALONE`; ``kernels`` None for :data:`FROM_CELL`;
    ``log_scale``, a (x, y), None but for :data:`SCALED`.
    """
    if decode in ("D0", "D4"):
        assert raw is not None
        reach = raw.clamp(max=LARGEST).exp() * stride
        return torch.cat([centre - reach[..., :2], centre + reach[..., 2:]], dim=-1)
    if decode == "D0c":
        assert raw is not None
        return _around(*_moved(centre, raw.new_full((2,), stride).mul(raw.new_ones(()).exp()), raw))
    assert kernels is not None and log_scale is not None
    if decode == "D5":
        middle, half = kernels.points.mean(dim=2), _deviation(kernels.points)
    elif decode == "D6":
        low, high = kernels.points.amin(dim=2), kernels.points.amax(dim=2)
        middle, half = (low + high) / 2, (high - low) / 2
    else:
        middle, half = kernels.shift, kernels.half
    if decode == "D3":
        middle, half = middle.detach(), half.detach()
    half = half * log_scale.float().exp()
    middle = centre + middle
    if raw is not None:
        middle, half = _moved(middle, half, raw)
    return _around(middle, half)


def _moved(middle: Tensor, half: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
    return middle + half * raw[..., :2], half * raw[..., 2:].clamp(max=LARGEST - 1).exp()


def _around(middle: Tensor, half: Tensor) -> Tensor:
    return torch.cat([middle - half, middle + half], dim=-1)


def _deviation(points: Tensor) -> Tensor:
    # The root's slope at zero is infinite; all points in one place shall not make the gradient NaN.
    return (points.var(dim=2, unbiased=False) + 1e-6).sqrt()


def _parts(offsets: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """d_f [n h w 2], extent [n h w 2] and points from p0 [n k h w 2], (y, x), cells."""
    fields = [OffsetField.from_tensor(offset) for offset in offsets]
    field = fields[0] if len(fields) == 1 else composed(fields)
    d_f, d_k = split(field.offset)
    size = torch.stack(extent(d_k, field.kernel_size, field.dilation), dim=-1)[:, 0]
    points = field.sampling_points()[:, 0] - field.centres()
    return d_f[:, 0, 0], size.clamp(min=LEAST_EXTENT), points

"""The operator for TorchScript, which reads no annotations that are strings (hence no ``from __future__``)."""

from torch import Tensor
from torch._jit_internal import BroadcastingList2  # type: ignore[attr-defined]
from torchvision.ops import deform_conv2d as torchvisions


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: BroadcastingList2[int] = 1,
    padding: BroadcastingList2[int] = 0,
    dilation: BroadcastingList2[int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """torchvision's operator; NaN and infinite offsets lead out of the map, as everywhere in deformscope."""
    return torchvisions(
        input,
        offset.nan_to_num(-1e6, -1e6, -1e6),
        weight,
        bias,
        (stride[0], stride[1]),
        (padding[0], padding[1]),
        (dilation[0], dilation[1]),
        mask,
    )

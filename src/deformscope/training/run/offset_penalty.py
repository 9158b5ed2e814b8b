"""A price on offsets, so that they stay where nothing pays for them: their mean square, as a part of the loss.

Nothing else holds them. A long training with Adam lets whole layers drift by a constant, which does nothing for the
prediction, and lets them fit the training photos; the field then says nothing of where objects are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...detectors.deform import DeformConv


class OffsetPenalty:
    """Sees the offsets of a network's deformable convolutions as it trains, from its making on."""

    def __init__(self, network: nn.Module) -> None:
        self._seen: list[Tensor] = []
        self._parameter = next(network.parameters())
        for module in network.modules():
            if isinstance(module, DeformConv) and module.offset_mode != "none":
                points = module.conv_offset.out_channels // (3 if module.modulated else 2)
                module.conv_offset.register_forward_hook(lambda conv, _, out, points=points: self._see(out, 2 * points))

    def take(self) -> Tensor:
        """Mean square, cells², summed over the layers, of what was seen since the last call. Without layers, zero."""
        seen, self._seen = self._seen, []
        squares = [offset.float().square().mean() for offset in seen]
        return torch.stack(squares).sum() if squares else self._parameter.new_zeros(())

    def _see(self, out: Tensor, channels: int) -> None:
        if torch.is_grad_enabled():
            self._seen.append(out[:, :channels])

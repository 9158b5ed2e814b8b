"""A penalty on offsets: their mean square, added to the loss.

No other loss limits offsets. In long training with Adam, the offsets of whole layers drift by a constant that does not
change the predictions, and overfit to the training photos; the field then no longer shows where objects are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...detectors.deform import DeformConv


class OffsetPenalty:
    """Collects the offsets of all deformable convolutions of ``network`` in each forward pass with gradients."""

    def __init__(self, network: nn.Module) -> None:
        self._seen: list[Tensor] = []
        self._parameter = next(network.parameters())
        for module in network.modules():
            if isinstance(module, DeformConv) and module.offset_mode != "none":
                points = module.conv_offset.out_channels // (3 if module.modulated else 2)
                module.conv_offset.register_forward_hook(lambda conv, _, out, points=points: self._see(out, 2 * points))

    def take(self) -> Tensor:
        """The mean square (cells²) of the offsets since the last call, summed over layers; zero without layers."""
        seen, self._seen = self._seen, []
        squares = [offset.float().square().mean() for offset in seen]
        return torch.stack(squares).sum() if squares else self._parameter.new_zeros(())

    def _see(self, out: Tensor, channels: int) -> None:
        if torch.is_grad_enabled():
            self._seen.append(out[:, :channels])

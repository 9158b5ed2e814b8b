"""A training batch: images, or feature maps of the trunk, with their objects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..fields.field import Placement


@dataclass(frozen=True)
class Batch:
    """A batch for :meth:`Detector.losses`: either ``images`` (with ``placements``) or ``maps``.

    Example:
        >>> images, placements = detector.prepare([photo])
        >>> object = {"boxes": torch.tensor([[10.0, 5.0, 300.0, 250.0]]), "labels": torch.tensor([7])}
        >>> losses = detector.losses(Batch([object], images, tuple(placements)))
        >>> total = sum(losses.values())
    """

    targets: list[dict[str, Tensor]]
    """One dictionary per image, in network px: ``boxes`` [t 4] xyxy, ``labels`` [t] 0-based and, optionally, ``ignore``
    (bool [t]; neither objects nor background) and ``masks`` (bool [t h w])."""
    images: Float[Tensor, "n 3 h w"] | None = None
    placements: tuple[Placement, ...] = ()
    maps: dict[str, Tensor] | None = None
    """Feature maps of the detector's :attr:`~.detector.Detector.frozen_trunk` by name [n c h w], instead of images."""
    colours: Float[Tensor, "n 3 _ _"] | None = None
    """With ``maps``, for detectors that need them: LAB, as :func:`.dense.box_losses.colours_of` makes them."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(
            [{key: value.to(device, non_blocking=True) for key, value in one.items()} for one in self.targets],
            None if self.images is None else self.images.to(device, non_blocking=True),
            self.placements,
            None if self.maps is None else {k: v.to(device, non_blocking=True) for k, v in self.maps.items()},
            None if self.colours is None else self.colours.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        return Batch(
            [{key: value.pin_memory() for key, value in one.items()} for one in self.targets],
            None if self.images is None else self.images.pin_memory(),
            self.placements,
            None if self.maps is None else {key: value.pin_memory() for key, value in self.maps.items()},
            None if self.colours is None else self.colours.pin_memory(),
        )

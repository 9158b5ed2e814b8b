"""Photos in the input of dense detectors: padded to multiples of the largest stride; boxes back in the photo."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...fields.field import Placement

MULTIPLE = 32


def on_photo(boxes: Tensor, placement: Placement) -> Tensor:
    """Convert xyxy from network px to photo px [d 4]."""
    return placement.to_photo(boxes.view(-1, 2).flip(-1)).flip(-1).view(-1, 4)


def own_sizes(placements: Sequence[Placement]) -> list[tuple[int, int]]:
    """(h, w), network px, of each photo in the input if it were padded alone."""
    found = []
    for placement in placements:
        h, w = (
            -(-round(size * scale) // MULTIPLE) * MULTIPLE
            for size, scale in zip(placement.size, placement.scale, strict=True)
        )
        found.append((h, w))
    return found

"""What the page says of chosen detections: the strongest sampling points of each layer and what they add, compactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..attribution.explanation import Explanation
from ..errors import DeformscopeError
from .packing import packed_bytes

MOST_POINTS = 400
"""Of a layer; weaker ones could not be seen beside them."""
STEPS = 127
"""In which a point's attribution is held, as a share of its layer's strongest."""


def why_records(
    explanations: Mapping[int, Explanation], kept: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The explanations, by the detection's row, of those detections that the page shows, in its order (``kept``).

    ``names`` are the page's layers. Raises DeformscopeError for an explanation of another photo's layers, and for one
    of deformable attention alone.
    """
    records = []
    for row, explained in explanations.items():
        if row not in kept:
            continue
        if explained.attention and not explained.layers:
            raise DeformscopeError(
                "explanations: of deformable attention; the page shows attributions of deformable convolutions alone, "
                "and draw.explanation those of object queries"
            )
        layers = {}
        for name, layer in explained.reached.items():
            if name not in names:
                raise DeformscopeError(
                    f"explanations: layer {name!r} is none of the photo's: {', '.join(map(repr, names))}"
                )
            layers[name] = {"largest": float(layer.points.abs().max()), "points": packed_points(layer.points)}
        records.append({"detection": kept.index(row), "of": explained.of, "value": explained.value, "layers": layers})
    return records


def packed_points(points: Float[Tensor, "g k h w"]) -> str:
    """The strongest points, weakest first: their places in the flattened map (uint32), then their shares (int8)."""
    index, shares = strongest(points)
    return packed_bytes(np.frombuffer(index.astype("<u4").tobytes() + shares.tobytes(), dtype=np.uint8))


def strongest(
    points: Float[Tensor, "g k h w"],
) -> tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]:
    """Places in the flattened map and shares (−127..127 of the strongest) of the points that the page draws."""
    values = torch.nan_to_num(points.flatten().double())
    order = values.abs().topk(min(MOST_POINTS, len(values))).indices.flip(0)
    shares = np.rint((values[order] / values.abs().max().clamp(min=1e-30) * STEPS).numpy()).astype(np.int8)
    seen = shares != 0
    return order.numpy()[seen], shares[seen]

"""What the page says of deformable attention: the samples of object queries, and an encoder as fields with its samples.

Points are held as displacements from their query's reference, photo px, in steps of at most 1/64 px (more where the
largest does not fit into 16 bits); weights in steps of 1/32767.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..fields.attention import AttentionField
from ..fields.field import OffsetField
from ..fields.moments import moments
from .packing import packed_steps

STEP = 1 / 64
"""Px: the coarsest step in which displacements are rounded, if they fit."""
WHOLE, MISSING = 32_767, -32_768
MOST_POINTS, MOST_OF_CELLS = 200_000, 30_000
"""Of a layer's object queries, and of one level's cells in an encoder; of more, only some queries are in the page."""


def queries_record(field: AttentionField, kept: Int[Tensor, " k"] | None = None) -> dict[str, Any]:
    """The samples of a layer's queries (n = 1) as the page reads them; of those in ``kept``, or of as many as fit."""
    _, q, heads, per_head, _ = field.points.shape
    chosen = torch.arange(min(q, max(1, MOST_POINTS // (heads * per_head)))) if kept is None else kept
    reference = field.reference[0, chosen].double()
    places = field.to_pixels(reference[:, :2])
    moved = field.to_pixels(field.points[0, chosen].double()) - places[:, None, None]
    steps, step = _steps(moved)
    record: dict[str, Any] = {
        "kind": "queries",
        "name": field.name,
        "ids": chosen.tolist(),
        "heads": heads,
        "points": per_head,
        "level": field.level.tolist(),
        "maps": field.level_sizes,
        "reference": [_rounded(place) for place in places.tolist()],
        "boxes": None,
        "step": step,
        "moved": packed_steps(steps.reshape(len(chosen), -1)),
        "weights": None,
    }
    if field.has_boxes:
        scale = reference.new_tensor(field.placement().scale)
        record["boxes"] = [_rounded(size) for size in (reference[:, 2:] / scale).tolist()]
    if field.weights is not None:
        shares = torch.nan_to_num(field.weights[0, chosen].double()).clamp(0, 1)
        record["weights"] = packed_steps(np.rint(shares.numpy() * WHOLE).astype(np.int16).reshape(len(chosen), -1))
    return record


def encoder_level(field: AttentionField, level: int) -> tuple[OffsetField, dict[str, Any]]:
    """One level of an encoder's queries as a field, whose groups are all heads together and each alone, and what the
    page needs besides: the groups' names and the samples of some of its cells."""
    heads = range(field.points.shape[2])
    each = [moments(field, level), *(moments(field, level, head) for head in heads)]
    together = replace(each[0], offset=torch.cat([one.offset for one in each], dim=1))
    (h, w), cells = field.cells_of(level)
    every = 1
    while -(-h // every) * -(-w // every) * field.points[0, 0].numel() // 2 > MOST_OF_CELLS:
        every += 1
    middle = [torch.arange((length - 1) % every // 2, length, every) for length in (h, w)]
    kept = (middle[0][:, None] * w + middle[1]).flatten() + cells.start
    names = ["all heads", *(f"head {head}" for head in heads)]
    return together, {"group_names": names, "samples": queries_record(field, kept)}


def _steps(moved: Float[Tensor, "*shape"]) -> tuple[np.ndarray, float]:
    values = moved.numpy()
    finite = np.isfinite(values)
    known = np.where(finite, values, 0.0)
    step = max(STEP, float(np.abs(known).max(initial=0.0)) / WHOLE)
    return np.where(finite, np.rint(known / step), MISSING).astype(np.int16), step


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 2) if np.isfinite(value) else 0.0 for value in values]

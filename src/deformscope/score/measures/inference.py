"""Run a detector on one photo: maps of its offset fields, and its detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from ...analysis import Analysis
from ...capture.context_managers import capture
from ...errors import DeformscopeError, NoDeformableCall
from ...fields import attention_start
from ...fields.cell_maps import CellMaps, finite
from ...fields.field import OffsetField
from ...fields.fields import Fields
from ...fields.moments import encoder_fields, with_encoders
from ...fields.stack import DEEPEST, composed, upstream

Maps = dict[str, CellMaps]
"""By layer and offset group: ``layer`` or ``layer:group``."""


@dataclass(frozen=True)
class Seen:
    """Maps and detections of one photo."""

    maps: Maps
    per_cell: dict[str, tuple[float, float]]
    """Photo px (y, x) of an input cell, by layer and group."""
    boxes: np.ndarray
    scores: np.ndarray
    broken: tuple[str, ...] = ()
    """Layers with NaN or infinite offsets."""
    analysis: Analysis | None = None
    """The measured fields themselves."""
    fresh: Maps = field(default_factory=dict)
    """Of an encoder's attention, as freshly initialised on this photo."""


def look(
    detector: nn.Module, photo: np.ndarray, layers: Sequence[str] = (), *, together: bool = False, fresh: bool = False
) -> Seen:
    """Run the detector on one photo, and keep the layers that match one of the patterns and have finite offsets.

    Layers are deformable convolutions and the levels of encoders' attention, as figures show them. With ``together``
    each convolution is composed with up to two below it; with ``fresh`` :attr:`Seen.fresh` is known. Calls on regions
    of interest instead of the photo are left out.
    """
    with capture(detector, broken=True) as fields:
        detection = detector(photo)[0]
    maps: Maps = {}
    per_cell, broken, shown = {}, [], {}
    for name, one in with_encoders(fields, layers).items():
        if one.offset.shape[0] != 1:
            continue
        stack = upstream(fields, name, DEEPEST if together else 1) if name in fields else [one]
        if any(part.non_finite or not finite(part) for part in stack):
            broken.append(name)
            continue
        whole = composed(stack)
        groups = whole.offset.shape[1]
        shown[name] = whole.to("cpu")
        for group in range(groups):
            key = name if groups == 1 else f"{name}:{group}"
            maps[key], per_cell[key] = CellMaps.of(whole, group), whole.pixels_per_cell()
    start: Maps = {}
    for attention in fields.attention.values() if fresh else ():
        own = [name for name in maps if name.startswith(f"{attention.name}[")]
        levels = encoder_fields(attention_start.fresh(attention)) if own else []
        start |= {one.name: CellMaps.of(one) for one in levels if one.name in own}
    boxes, scores = detection["boxes"].double().cpu().numpy(), detection["scores"].double().cpu().numpy()
    found = {key: value.cpu() for key, value in detection.items() if isinstance(value, Tensor)}
    names, detector_name = getattr(detector, "class_names", ()), getattr(detector, "name", type(detector).__name__)
    analysis = Analysis(photo, Fields(shown), found, tuple(names), str(detector_name))
    return Seen(maps, per_cell, boxes, scores, tuple(broken), analysis, start)


@dataclass(frozen=True)
class Probed:
    """What a detector's offsets are made by."""

    convolutions: tuple[str, ...]
    """The names of the convolutions that compute offsets, which can be drawn anew."""
    others: frozenset[str]
    """Layers whose offsets something else makes."""


def probe(detector: nn.Module, layers: Sequence[str] = (), *, together: bool = False) -> Probed:
    """Find what makes the offsets of the ``layers``, by running the detector on a grey photo.

    Raises DeformscopeError where there is nothing to measure.
    """
    grey = np.full((96, 128, 3), 127, dtype=np.uint8)
    with capture(detector, broken=True) as fields:
        detector(grey)
    chosen = with_encoders(fields, layers)
    name = getattr(detector, "name", type(detector).__name__)
    if not chosen:
        raise NoDeformableCall(
            f"{name}: has only object queries ({', '.join(chosen.attention)}), which lie on no grid, so that neither "
            "divergence nor circles can be measured; studies/attention/measure.py measures queries, draw.queries shows "
            "them"
        )
    if together and not any(name in fields for name in chosen):
        raise DeformscopeError(f"composed=True: {name} has attention, of which each layer is measured alone")
    made = {
        name: {source for one in upstream(fields, name, DEEPEST if together else 1) for source in _convolutions(one)}
        for name in chosen
        if name in fields
    }
    everywhere = {source for one in fields.values() for source in _convolutions(one)}
    return Probed(tuple(sorted(everywhere)), frozenset(name for name, sources in made.items() if not sources))


def _convolutions(field: OffsetField) -> tuple[str, ...]:
    return () if field.source is None else field.source.convolutions


def offset_convolutions(detector: nn.Module) -> tuple[str, ...]:
    """:attr:`Probed.convolutions` of a detector."""
    return probe(detector).convolutions

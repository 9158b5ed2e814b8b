"""Run a detector on one photo: maps of its offset fields, and its detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from ...analysis import Analysis
from ...capture.context_managers import capture
from ...errors import NoDeformableCall
from ...fields.cell_maps import CellMaps, finite
from ...fields.fields import Fields
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


def look(detector: nn.Module, photo: np.ndarray, layers: Sequence[str] = (), *, together: bool = False) -> Seen:
    """Run the detector on one photo, and keep the layers that match one of the patterns and have finite offsets.

    With ``together`` each layer is composed with up to two below it. Calls on regions of interest instead of the photo
    are left out.
    """
    with capture(detector, broken=True) as fields:
        detection = detector(photo)[0]
    maps: Maps = {}
    per_cell, broken, shown = {}, [], {}
    for name, field in fields.matching(list(layers)).items():
        if field.offset.shape[0] != 1:
            continue
        stack = upstream(fields, name, DEEPEST if together else 1)
        if any(one.non_finite or not finite(one) for one in stack):
            broken.append(name)
            continue
        field = composed(stack)
        groups = field.offset.shape[1]
        shown[name] = field.to("cpu")
        for group in range(groups):
            key = name if groups == 1 else f"{name}:{group}"
            maps[key], per_cell[key] = CellMaps.of(field, group), field.pixels_per_cell()
    boxes, scores = detection["boxes"].double().cpu().numpy(), detection["scores"].double().cpu().numpy()
    found = {key: value.cpu() for key, value in detection.items() if isinstance(value, Tensor)}
    names, detector_name = getattr(detector, "class_names", ()), getattr(detector, "name", type(detector).__name__)
    analysis = Analysis(photo, Fields(shown), found, tuple(names), str(detector_name))
    return Seen(maps, per_cell, boxes, scores, tuple(broken), analysis)


def offset_convolutions(detector: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions that compute a detector's offsets, found by running it on a grey photo."""
    grey = np.full((96, 128, 3), 127, dtype=np.uint8)
    with capture(detector, broken=True) as fields:
        detector(grey)
    if not fields:
        name = getattr(detector, "name", type(detector).__name__)
        raise NoDeformableCall(
            f"{name}: has deformable attention ({', '.join(fields.attention)}) and no deformable convolution, whose "
            "offsets are what is measured here; draw.queries shows attention"
        )
    sources = [field.source for field in fields.values() if field.source is not None]
    return tuple(sorted({name for source in sources for name in source.convolutions}))

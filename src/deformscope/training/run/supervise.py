"""The supervision of offsets that a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ...detectors.detector import Detector
from ...errors import DeformscopeError
from ..data.sample import Source
from ..recipe.recipe import Recipe
from ..supervision import OffsetSupervision, Schedule


def attached(recipe: Recipe, detector: Detector, source: Source) -> OffsetSupervision | None:
    """The supervision of ``recipe``, attached to ``detector``; None if the recipe has none.

    Raises DeformscopeError if no layer matches, or if no photo of ``source`` has an object.
    """
    settings = recipe.optimiser.offset_supervision
    if settings is None:
        return None
    if not any(len(source.load(index).boxes) for index in range(len(source))):
        raise DeformscopeError("optimiser.offset_supervision: no photo has a box; expected annotated objects")
    photo = np.full((*recipe.data.canvas, 3), 128, dtype=np.uint8)

    def example() -> None:
        detector.detect(*detector.prepare([photo]))

    layers: Sequence[str] | Mapping[str, tuple[float, float]]
    deepest = 1
    heads = detector.head_sizes
    if not heads or recipe.network.deform_layers == 0:
        layers = settings.layers or ("*",)
    else:
        deepest = recipe.network.deform_layers
        uppermost = {f"{head}.deform": sizes for head, sizes in heads.items()}
        chosen = OffsetSupervision(detector, example, settings.layers).layers if settings.layers else uppermost
        # Cells of a level are supervised by the boxes that the level predicts.
        layers = {name: next((s for head, s in heads.items() if name.startswith(head)), (0, np.inf)) for name in chosen}
        detector.set_task_gradient(settings.task_gradient)
    return OffsetSupervision(
        detector,
        example,
        layers,
        loss=settings.loss,
        weight=Schedule(settings.weight, settings.schedule, settings.schedule_steps or max(1, recipe.run.steps // 2)),
        composed=settings.composed or deepest,
        task_gradient=settings.task_gradient,
        side_branch=settings.side_branch,
    )


def targets(batch: Sequence[Mapping[str, Tensor]], shuffled: bool) -> list[dict[str, Tensor]]:
    """Boxes and ignored objects of each photo; ``shuffled``: those of the next photo of the batch."""
    own = [{key: one[key] for key in ("boxes", "ignore") if key in one} for one in batch]
    return own[1:] + own[:1] if shuffled else own

"""From a recipe to a network with its initial weights, and the supervision of its offsets."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..detectors.checkpoints.native import KINDS, load_start, load_trunk
from ..detectors.deform import DeformConv
from ..detectors.dense import DenseConfig
from ..detectors.detector import TrainableDetector
from ..errors import DeformscopeError
from .recipe import DENSE, Recipe
from .sources import Source
from .supervision import OffsetSupervision, Schedule


def build(recipe: Recipe, class_names: Sequence[str]) -> TrainableDetector:
    """Build the network of a recipe in train mode. Initial weights depend on the seed and not on the offset mode."""
    network = recipe.network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.run.seed)
        config = network.config(tuple(class_names))
        if recipe.data.folder is None and isinstance(config, DenseConfig):  # drawn images are shown in their own size
            sides = recipe.data.shapes.size
            config = replace(config, shorter_side=min(sides), longer_side=max(sides))
        _, make = KINDS[network.architecture if network.architecture in DENSE else "rcnn"]
        detector: TrainableDetector = make(config)
        try:
            if network.weights is not None:
                load_trunk(detector, network.weights)
            if network.start is not None:
                load_start(detector, network.start)
        except DeformscopeError as error:
            raise DeformscopeError(f"network.{error}") from None
    for module in detector.modules():
        # Unused parameters get no gradients, for which DistributedDataParallel would wait.
        if isinstance(module, DeformConv) and network.offset_mode == "none" and not module.modulated:
            module.conv_offset.requires_grad_(False)
    names = [name for name, _ in detector.named_parameters()]
    for pattern in network.freeze:
        if not fnmatch.filter(names, pattern):
            raise DeformscopeError(f"network.freeze: {pattern!r} fits no parameter; expected such as {names[0]!r}")
    for name, parameter in detector.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in network.freeze):
            parameter.requires_grad_(False)
    return detector.train()


def supervised(recipe: Recipe, detector: TrainableDetector, source: Source) -> OffsetSupervision | None:
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

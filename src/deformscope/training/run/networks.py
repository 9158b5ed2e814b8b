"""From a recipe to a network with its initial weights."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...detectors.checkpoints.native import KINDS
from ...detectors.checkpoints.start import load_start
from ...detectors.checkpoints.trunk import load_trunk
from ...detectors.deform import DeformConv
from ...detectors.detector import Detector
from ...errors import DeformscopeError
from ..recipe.mask_terms import chosen_terms
from ..recipe.recipe import DENSE, Recipe


def build(recipe: Recipe, class_names: Sequence[str]) -> Detector:
    """Build the network of a recipe in train mode. Initial weights depend on the seed and not on the offset mode."""
    network = recipe.network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.run.seed)
        detector = _built(recipe, class_names)
        if network.weights is not None:
            try:
                load_trunk(detector, network.weights)
            except DeformscopeError as error:
                raise DeformscopeError(f"network.{error}") from None
        if network.start is not None:
            try:
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


def _built(recipe: Recipe, class_names: Sequence[str]) -> Detector:
    network = recipe.network
    if network.architecture in DENSE:
        make_config, make = KINDS[network.architecture]
        second_stage: dict[str, Any] = {
            "proposals": network.proposals,
            "rois_per_image": network.rois_per_image,
            "masks": (network.masks or None) if network.architecture == "dense_rcnn" else None,
        }
        second_stage["mask_terms"] = (
            chosen_terms(network.architecture, network.masks, network.mask_terms, network.offset_mode) or None
        )
        second_stage["mask_hidden"] = network.mask_hidden or None
        config = make_config(
            tuple(class_names),
            network.channels,
            modulated=network.modulated,
            offset_mode=network.offset_mode,
            shared=network.shared,
            deform_layers=network.deform_layers,
            decode=network.decode,
            trunk=network.trunk,
            **{key: value for key, value in second_stage.items() if value is not None},
        )
        if recipe.data.folder is None:  # synthetic images are shown in their own size
            config = replace(
                config, shorter_side=min(recipe.data.shapes.size), longer_side=max(recipe.data.shapes.size)
            )
        return make(config)
    from ...detectors.rcnn.build import build as build_rcnn

    return build_rcnn(
        network.architecture,
        deformable=network.deformable,
        offset_mode=network.offset_mode,
        class_names=class_names,
    )

"""From a recipe to a network, and from a batch to its losses: where the architectures differ, and nowhere else."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ...detectors.checkpoints import native as packaged
from ...detectors.deform import DeformConv
from ...detectors.dense.dense import DenseConfig, DenseDetector, assign
from ...detectors.dense.small import SmallDetector
from ...detectors.detector import Detector
from ...detectors.rcnn.rcnn import RCNN
from ...errors import DeformscopeError
from ...fields.field import Placement
from ..data.sample import Batch
from ..recipe.recipe import Network, Recipe

DENSE: dict[str, tuple[type[DenseConfig], type[DenseDetector]]] = packaged.KINDS | {
    "small": (DenseConfig, SmallDetector)
}
"""deformscope's own architectures: configuration and network."""


def build(recipe: Recipe, class_names: Sequence[str]) -> Detector:
    """The recipe's network with the initial weights of its seed, the same in every offset mode; in train mode."""
    network = recipe.network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.run.seed)
        detector = _built(recipe, class_names)
        if network.weights is not None:
            _load_trunk(detector, network)
    for module in detector.modules():
        # Where nothing uses it, it learns nothing, and DistributedDataParallel would wait for its gradients.
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
        make_config, make = DENSE[network.architecture]
        second_stage = {
            "proposals": network.proposals,
            "rois_per_image": network.rois_per_image,
            "masks": network.masks or None,
        }
        config = make_config(
            tuple(class_names),
            network.channels,
            modulated=network.modulated,
            offset_mode=network.offset_mode,
            shared=network.shared,
            deform_layers=network.deform_layers,
            decode=network.decode,
            **{key: value for key, value in second_stage.items() if value is not None},
        )
        if recipe.data.folder is None:  # drawn images come in the size in which they are shown
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


def has_masks(recipe: Recipe) -> bool:
    """The network learns masks."""
    return recipe.network.masks or recipe.network.architecture.startswith("mask_")


@dataclass(frozen=True)
class Preparation:
    """The detector's own image preparation, with a choice of the shorter side for multi-scale training."""

    detector: Detector

    def __call__(self, photos: Sequence[np.ndarray], shorter_side: int | None) -> tuple[Tensor, list[Placement]]:
        """RGB uint8 ``[h w 3]`` photos to a batch and how each lies in it; None: the size of detection."""
        if shorter_side is None:
            return self.detector.prepare(photos)
        if not isinstance(self.detector, RCNN):
            raise DeformscopeError(
                f"data.shorter_sides: {self.detector.name} has its own; leave them out, or use views"
            )
        from ...detectors.preparation import prepare

        return prepare(photos, replace(self.detector.config.dialect.preparation, shorter_side=shorter_side))


def losses(detector: Detector, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch, whose sum trains."""
    if isinstance(detector, RCNN):
        assert batch.images is not None
        targets = [
            {key: value[~target["ignore"]] for key, value in target.items() if key != "ignore"}
            for target in batch.targets
        ]
        return detector.losses(batch.images, batch.placements, targets)
    assert isinstance(detector, DenseDetector)
    if batch.maps is None:
        assert batch.images is not None
        maps = detector.trunk(batch.images.to(memory_format=torch.channels_last))
    else:
        maps = batch.maps
    predictions = detector.predict(maps)
    found = detector.losses(predictions, batch.targets)
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return found
    # Each process divides by its own positives and gradients are averaged; dividing by the mean of all processes'
    # positives instead gives what one process learns from the same photos.
    own = sum(int((assign(predictions.centres, predictions.level, t)[0] >= 0).sum()) for t in batch.targets)
    count = torch.tensor(float(own), device=predictions.cls.device)
    distributed.all_reduce(count)
    factor = max(own, 1) * distributed.get_world_size() / count.clamp(min=1)
    # A second stage learns from as many regions in each process.
    return {name: value if "roi" in name else value * factor for name, value in found.items()}


def _load_trunk(detector: Detector, network: Network) -> None:
    source = network.weights
    if isinstance(detector, RCNN):
        _load_resnet(detector, network)
    elif isinstance(detector, SmallDetector):
        raise DeformscopeError(f"network.weights: {source!r}; a small detector starts from random ones: null")
    elif source == "packaged":
        detector.trunk.load_state_dict(packaged.load().trunk.state_dict())  # type: ignore[union-attr]
    else:
        assert isinstance(detector, DenseDetector)
        _load_by_order(detector.trunk, Path(str(source)))


def _load_by_order(trunk: nn.Module, path: Path) -> None:
    """MobileNetV2 weights of other projects: the same tensors in the same order under other names."""
    published = _read(path)
    own = trunk.state_dict()
    pairs = list(zip(own, published.values(), strict=False))
    if len(pairs) < len(own) or any(own[name].shape != value.shape for name, value in pairs):
        raise DeformscopeError(f"network.weights: {path}: its tensors are not MobileNetV2's in order; get another file")
    trunk.load_state_dict(dict(pairs))


def _load_resnet(detector: RCNN, network: Network) -> None:
    if network.weights == "torchvision":
        import torchvision

        name = f"resnet{detector.config.depth}"
        weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1
        state = weights.get_state_dict(progress=True, check_hash=True)
    else:
        state = _read(Path(str(network.weights)))
    missing = detector.backbone.load_state_dict(state, strict=False).missing_keys
    absent = [key for key in missing if "conv_offset" not in key]
    if absent:
        raise DeformscopeError(f"network.weights: {network.weights}: no {absent[0]!r}; expected torchvision's ResNet")


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path.expanduser(), map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    except Exception as error:  # whatever torch makes of a file that is none
        reason = " ".join(str(error).split())[:200]
        raise DeformscopeError(f"network.weights: {path}: cannot be read ({reason}); check the file") from None

"""Infer the architecture of another framework's checkpoint from its keys and shapes.

Keys are the detector's own here; :mod:`.mmdet` and :mod:`.detectron2` translate theirs and back, so that errors name
the keys of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import DeformscopeError
from ..rcnn.build import numbered_class_names
from ..rcnn.config import BLOCKS, STAGES, Deformable, Dialect, RCNNConfig
from ..rcnn.rcnn import RCNN
from .fill import Theirs, fill

KERNEL_POINTS = 9


def renamer(pairs: Mapping[str, str]) -> Callable[[str], str]:
    """Replace the beginning of a key by a table of prefixes; other keys are unchanged."""

    def rename(key: str) -> str:
        for old, new in pairs.items():
            if key.startswith(old):
                return new + key[len(old) :]
        return key

    return rename


def renamed(path: Path, state: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """``state`` with the detector's own keys. Raises DeformscopeError if two keys of the file become the same."""
    own = {rename(key): value for key, value in state.items()}
    if len(own) < len(state):
        taken: dict[str, str] = {}
        for key in state:
            if taken.setdefault(rename(key), key) != key:
                raise DeformscopeError(f"{path}: {taken[rename(key)]} and {key} mean the same; expected one of them")
    return own


def read_config(
    path: Path,
    state: Mapping[str, Tensor],
    dialect: Dialect,
    theirs: Theirs,
    names: Sequence[str] | None = None,
    groups: int | None = None,
) -> RCNNConfig:
    """The configuration of the network with the weights ``state`` (own keys).

    ``names`` are its classes and ``groups`` its offset groups, if the file states them.
    """

    def width(key: str, axis: int = 0) -> int:
        if key not in state or state[key].ndim <= axis:
            raise DeformscopeError(
                f"{path}: no usable {theirs(key)}; expected a Faster or Mask R-CNN with a ResNet and an FPN"
            )
        return state[key].shape[axis]

    classes, logits = width("box_head.box.weight") // 4, width("box_head.cls.weight")
    if logits != classes + 1 or not classes:
        raise DeformscopeError(
            f"{path}: {logits} class logits and {classes} boxes a region; expected class-specific boxes and the "
            "background as one class more"
        )
    if names is not None and len(names) != classes:
        raise DeformscopeError(f"{path}: {len(names)} class names for {classes} classes; the file contradicts itself")
    mask = any(key.startswith("mask_head.") for key in state)
    convs = sum(f"mask_head.convs.{i}.0.weight" in state for i in range(32))
    return RCNNConfig(
        class_names=tuple(names) if names is not None else numbered_class_names(classes),
        depth=_depth(path, state),
        mask=mask,
        deformable=_deformable(path, state, groups),
        dialect=dialect,
        stem_channels=width("backbone.conv1.weight"),
        base_channels=width("backbone.layer1.0.conv1.weight"),
        fpn_channels=width("neck.inner_blocks.0.0.weight"),
        head_channels=width("box_head.cls.weight", axis=1),
        mask_channels=width("mask_head.predictor.mask_fcn_logits.weight", axis=1) if mask else 256,
        mask_convs=convs if mask else 4,
    )


def assemble(path: Path, state: dict[str, Tensor], config: RCNNConfig, name: str, theirs: Theirs) -> RCNN:
    """Build the detector in eval mode from the tensors of ``state``, without a copy; see :func:`.fill.fill` for
    errors."""
    with torch.device("meta"):  # initial weights would take memory and time and be replaced at once
        detector = RCNN(config, name)
    described = f"{config.architecture} with {config.deformable or 'no deformable convolution'}"
    return fill(path, state, detector, described, theirs)


def _depth(path: Path, state: Mapping[str, Tensor]) -> int:
    blocks = tuple(
        len({key.split(".")[2] for key in state if key.startswith(f"backbone.{stage}.")}) for stage in STAGES.values()
    )
    for depth, expected in BLOCKS.items():
        if blocks == expected:
            return depth
    raise DeformscopeError(f"{path}: {blocks} blocks in the backbone's stages; expected a ResNet-50, 101 or 152")


def _deformable(path: Path, state: Mapping[str, Tensor], groups: int | None) -> Deformable | None:
    """Stages, version and groups from the channels of the offset convolutions: 18 per group (version 1) or 27 (version
    2)."""
    offsets = {key: len(value) for key, value in state.items() if key.endswith(".conv2.conv_offset.weight")}
    if not offsets:
        return None
    channels = set(offsets.values())
    if len(channels) > 1:
        raise DeformscopeError(f"{path}: offset convolutions of {sorted(channels)} channels; expected the same in all")
    number = channels.pop()
    stages = tuple(stage for stage in STAGES.values() if any(key.startswith(f"backbone.{stage}.") for key in offsets))
    # 108 channels are six groups of version 1 or four of version 2; groups also divide the channels of the features.
    fitting = [
        Deformable(stages, modulated, number // per_group)
        for modulated, per_group in ((False, 2 * KERNEL_POINTS), (True, 3 * KERNEL_POINTS))
        if number % per_group == 0 and groups in (None, number // per_group)
        if _divides(state, stages, number // per_group)
    ]
    if len(fitting) != 1:
        raise DeformscopeError(
            f"{path}: {number} channels in its offset convolutions; expected 18 a group (version 1) or 27 (version 2)"
        )
    return fitting[0]


def _divides(state: Mapping[str, Tensor], stages: Sequence[str], groups: int) -> bool:
    weights = [value for key, value in state.items() if key.endswith(".conv2.weight") and key.split(".")[1] in stages]
    return all(weight.shape[1] % groups == 0 for weight in weights)

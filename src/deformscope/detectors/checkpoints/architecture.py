"""What another framework's checkpoint holds: the architecture, by keys and shapes, and one of its sets of weights.

Keys are the detector's own here; :mod:`.mmdet` and :mod:`.detectron2` translate theirs and back, so that errors name
the keys of the file. Training leaves files with two sets of weights, the weights themselves and their average over the
steps:

| file | plain weights | average |
|---|---|---|
| a hook of mmcv or MMDetection 2 | the model's own keys | buffers ``ema_backbone_conv1_weight``, … |
| mmengine's hook | (not here: ``ema_state_dict``, which the hook has exchanged for the average) | ``state_dict`` |
| ``torch.optim.swa_utils.AveragedModel`` | none | ``module.…`` beside ``n_averaged`` |
| semi-supervised training | ``student.…`` | ``teacher.…`` |

MMDetection's hook exchanges the first kind too before a checkpoint is saved, if it runs before the hook that saves: its
priority in the file's configuration says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import DeformscopeError
from ..detector import Source, TrainableDetector
from ..options import Weights
from ..rcnn import RCNN, Deformable, RCNNConfig
from ..rcnn.config import BLOCKS, STAGES, Dialect, numbered_class_names

KERNEL_POINTS = 9
NAMED = 4
"""As many keys are named in a complaint."""
PAIRS = (("student.", "teacher."), ("modelStudent.", "modelTeacher."))
"""Prefixes of the keys of both networks: MMDetection's and Unbiased Teacher's."""
WRAPPERS = re.compile(r"^(module\.)+")
"""Prefix of keys in parallel training and averaged models."""
COUNTERS = ("n_averaged", "steps")
"""A key of averaged models."""
PRIORITIES = {"HIGHEST": 0, "VERY_HIGH": 10, "HIGH": 30, "ABOVE_NORMAL": 40}
"""mmcv's names for priorities of hooks that run before the one that saves, which is ``NORMAL``, 50; lower numbers run
first."""
Theirs = Callable[[str], str]
"""One of the detector's own keys as the file has it."""
Network = TypeVar("Network", bound=TrainableDetector)


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
    """Build the detector in eval mode from the tensors of ``state``, without a copy; see :func:`fill` for
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


def chosen(
    path: Path, state: Mapping[Any, Any], weights: Weights = "plain", *, averaged: bool = False
) -> dict[str, Any]:
    """One of the sets of weights in a file, under the keys of a single model.

    ``averaged`` means that the plain weights are the average already. Raises DeformscopeError when an average is
    requested and the file has none.
    """
    own = {WRAPPERS.sub("", str(key)): value for key, value in state.items()}
    averaged |= "n_averaged" in own
    own = {key: value for key, value in own.items() if key not in COUNTERS}
    for student, teacher in PAIRS:
        if any(key.startswith((student, teacher)) for key in own):
            wanted = student if weights == "plain" and any(key.startswith(student) for key in own) else teacher
            found = {WRAPPERS.sub("", key[len(wanted) :]): v for key, v in own.items() if key.startswith(wanted)}
            if not found:
                raise DeformscopeError(f"{path}: weights={weights!r}: the file has no {teacher}… keys; leave it out")
            return found
    plain = {key: value for key, value in own.items() if not _is_buffer(key)}
    if weights == "plain" or averaged:
        return plain
    average = {key: own[buffer] for key in plain if (buffer := "ema_" + key.replace(".", "_")) in own}
    if not average:
        raise DeformscopeError(f"{path}: weights='ema': the file has no average of its weights; leave it out")
    return plain | average  # not all hooks average the statistics of batch norm


def exchanged(config: Mapping[str, Any]) -> bool:
    """Whether MMDetection's hook has replaced the plain weights by the average, by the file's configuration."""
    hooks = config.get("custom_hooks")
    for hook in hooks if isinstance(hooks, list) else ():
        if isinstance(hook, dict) and "EMA" in str(hook.get("type")):
            priority = hook.get("priority", 50)
            return PRIORITIES.get(str(priority), priority if isinstance(priority, int) else 50) < 50
    return False


def _is_buffer(key: str) -> bool:
    return key.startswith("ema_") and "." not in key


def fill(
    path: Path, state: dict[str, Tensor], detector: Network, described: str, theirs: Theirs = lambda key: key
) -> Network:
    """``detector`` (on the meta device) in eval mode, holding ``state``'s own tensors (no copy).

    Missing, unexpected and misshapen keys are named in a DeformscopeError, and what they do not fit is ``described``.
    """
    own = detector.state_dict()
    for key in own:
        if key.endswith("num_batches_tracked") and key not in state:
            state[key] = torch.zeros((), dtype=torch.long)  # says nothing where the statistics are frozen
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if missing or unexpected:
        parts = [
            f"{len(keys)} {what}: {_listed(theirs(key) for key in keys)}"
            for what, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        raise DeformscopeError(f"{path}: does not fit a {described}; {'; '.join(parts)}")
    wrong = [key for key, value in own.items() if value.shape != state[key].shape]
    if wrong:
        first = wrong[0]
        raise DeformscopeError(
            f"{path}: {len(wrong)} of another shape: {theirs(first)} is {tuple(state[first].shape)}, "
            f"expected {tuple(own[first].shape)}"
        )
    for key, value in state.items():
        if own[key].is_floating_point() != value.is_floating_point():
            raise DeformscopeError(f"{path}: {theirs(key)} is of type {value.dtype}; expected {own[key].dtype}")
    detector.load_state_dict(state, assign=True)
    detector.source = Source(path)
    return detector.eval()


def _listed(keys: Iterable[str]) -> str:
    names = sorted(keys)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

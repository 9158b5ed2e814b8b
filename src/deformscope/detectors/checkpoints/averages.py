"""Files with two sets of weights, as training leaves them: the weights themselves and their average over the steps.

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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ...errors import DeformscopeError

Weights = Literal["plain", "ema"]
"""``plain``: the weights under the usual keys (of a student and its teacher, the student's); ``ema``: their average."""
PAIRS = (("student.", "teacher."), ("modelStudent.", "modelTeacher."))
"""Prefixes of the keys of both networks: MMDetection's and Unbiased Teacher's."""
WRAPPERS = re.compile(r"^(module\.)+")
"""Prefix of keys in parallel training and averaged models."""
COUNTERS = ("n_averaged", "steps")
"""A key of averaged models."""
PRIORITIES = {"HIGHEST": 0, "VERY_HIGH": 10, "HIGH": 30, "ABOVE_NORMAL": 40}
"""mmcv's names for priorities of hooks that run before the one that saves, which is ``NORMAL``, 50; lower numbers run
first."""


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

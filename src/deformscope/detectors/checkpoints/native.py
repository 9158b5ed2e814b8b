"""deformscope's checkpoints, and weights to begin a training with. A file is safetensors and holds its configuration.

The metadata has ``architecture``, the kind of the detector, and ``config``, its configuration as JSON;
:meth:`..detector.TrainableDetector.save` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import DeformscopeError
from ...from_dict import from_dict
from ..dense import DenseConfig, DenseDetector, DenseRCNN, DenseRCNNConfig, SmallDetector
from ..detector import TrainableDetector
from ..rcnn import RCNN, RCNNConfig
from . import unpickle
from .architecture import fill

KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "dense": (DenseConfig, DenseDetector),
    "dense_rcnn": (DenseRCNNConfig, DenseRCNN),
    "small": (DenseConfig, SmallDetector),
    "rcnn": (RCNNConfig, RCNN),
}
"""Configuration and network for each kind of detector."""


CLASSES = (".cls.weight", ".cls.bias")
"""Ends of the names of parameters with a row for each class."""
REST = "rest"
"""Metadata of a packaged file: the packaged detector that has the tensors which this file lacks, for example the same
frozen trunk."""


def packaged(name: str = "packaged") -> TrainableDetector:
    """Load a detector that comes with the package, ``packaged``, ``guided`` or ``trunk``, in eval mode.

    ``weights/MODEL_CARD.md``, ``…_GUIDED.md`` and ``…_TRUNK.md`` describe data, recipe and AP.
    """
    weights = files("deformscope") / "weights"
    with as_file(weights / f"{name}.safetensors") as path:
        metadata, state = read(path)
        if REST in metadata:
            with as_file(weights / f"{metadata[REST]}.safetensors") as other:
                lent = read(other)[1]
            # The file's own tensors count; the other one lends only what it lacks.
            state |= {key: lent[key] for key in lent.keys() - state.keys()}
        return _built(path, metadata, state, name)


def load(path: Path, name: str | None = None) -> TrainableDetector:
    """Load a detector from a file of :meth:`..detector.TrainableDetector.save`, in eval mode, with float32 weights.

    Raises DeformscopeError for other files, and if the weights do not fit the configuration.
    """
    return _built(path, *read(path), name)


def _built(path: Path, metadata: dict[str, str], state: dict[str, Tensor], name: str | None) -> TrainableDetector:
    kind = metadata.get("architecture", "")
    if kind not in KINDS:
        raise DeformscopeError(
            f"{path}: architecture {kind!r} in its metadata; expected a file that deformscope saved, "
            f"of {', '.join(KINDS)}"
        )
    config_type, network = KINDS[kind]
    try:
        config: Any = from_dict(config_type, json.loads(metadata.get("config", "null")), "config")
        with torch.device("meta"):  # initial weights would take memory and time and be replaced at once
            detector: TrainableDetector = network(config, name or path.stem)
    except Exception as error:  # torch raises many kinds of errors for impossible configurations
        reason = " ".join(str(error).split())
        raise DeformscopeError(f"{path}: its configuration cannot be used ({reason}); save it again") from None
    return fill(path, state, detector, f"{kind} detector of its configuration")


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a safetensors file, with half precision widened to float32."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:300]  # it quotes the file
        raise DeformscopeError(f"{path}: no readable safetensors file ({reason}); get the file again") from None
    return metadata, {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


def load_start(detector: TrainableDetector, start: str | os.PathLike[str]) -> None:
    """Load the weights of ``start``, ``packaged`` or a file that deformscope saved, into ``detector``.

    Classes are matched by name; classes and parameters that the file lacks keep their values. Raises DeformscopeError
    where the file has others than ``detector``, or no class of it.
    """
    text = os.fspath(start)
    try:
        other = packaged() if text == "packaged" else load(Path(text).expanduser())
    except DeformscopeError as error:
        raise DeformscopeError(f"start={text!r}: {error}") from None
    own, theirs = detector.state_dict(), other.state_dict()
    shared = [name for name in detector.class_names if name in other.class_names]
    if not shared:
        raise DeformscopeError(f"start={text!r}: it knows none of the classes {', '.join(detector.class_names[:5])}")
    taken = {}
    for name, value in theirs.items():
        if name.endswith(CLASSES) and name in own:
            value = _rows(own[name], value, detector.class_names, other.class_names)
        if name not in own or own[name].shape != value.shape:
            raise DeformscopeError(
                f"start={text!r}: its {name}, {list(value.shape)}, does not fit this network; expected a "
                f"{detector.kind} detector with the same layers"
            )
        taken[name] = value
    detector.load_state_dict(taken, strict=False)


def _rows(own: Tensor, theirs: Tensor, names: Sequence[str], their_names: Sequence[str]) -> Tensor:
    """``own`` with the rows of the classes that both know taken from ``theirs``."""
    rows = own.clone()
    for index, name in enumerate(names):
        if name in their_names:
            rows[index] = torch.as_tensor(theirs[their_names.index(name)], dtype=own.dtype)
    return rows


def load_trunk(detector: TrainableDetector, weights: str | os.PathLike[str]) -> None:
    """Load published weights into the detector's trunk.

    ``weights`` is ``packaged`` (the packaged detector's trunk), ``torchvision`` (its classifier with the same
    architecture, trained on ImageNet, downloaded by torchvision), or a torch or safetensors file with the tensors of a
    classifier. No code in a file is run. Raises DeformscopeError for weights that cannot be read or do not fit.
    """
    text = os.fspath(weights)
    try:
        detector.load_trunk(_published(text, detector))
    except DeformscopeError as error:
        raise DeformscopeError(f"weights={text!r}: {error}") from None


def _published(weights: str, detector: TrainableDetector) -> Mapping[str, Tensor]:
    if weights == "packaged":
        trunk = packaged().trunk
        assert trunk is not None
        return trunk.state_dict()
    if weights == "torchvision":
        if detector.torchvision_trunk is None:
            raise DeformscopeError(f"torchvision has no such network as the trunk of a {detector.kind} detector")
        from torchvision.models import get_model_weights

        classifier = get_model_weights(detector.torchvision_trunk)
        return classifier.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    path = Path(weights).expanduser()
    if unpickle.kind(path) == "safetensors":
        return read(path)[1]
    content = unpickle.read_torch(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise DeformscopeError("no dictionary of tensors in it; expected a classifier's state_dict")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}

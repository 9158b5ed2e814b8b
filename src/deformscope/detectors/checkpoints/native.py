"""deformscope's checkpoints, including the packaged one: a safetensors file that contains the configuration.

The metadata has ``architecture``, the kind of the detector, and ``config``, its configuration as JSON;
:meth:`..detector.Detector.save` writes them.
"""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import DeformscopeError
from ...from_dict import from_dict
from ..dense.config import DenseConfig, DenseRCNNConfig
from ..dense.dense import DenseDetector
from ..dense.dense_rcnn import DenseRCNN
from ..dense.small import SmallDetector
from ..detector import Detector
from ..rcnn.config import RCNNConfig
from ..rcnn.rcnn import RCNN
from .fill import fill
from .former_names import ARCHITECTURES, CONFIG_KEYS

KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "dense": (DenseConfig, DenseDetector),
    "dense_rcnn": (DenseRCNNConfig, DenseRCNN),
    "small": (DenseConfig, SmallDetector),
    "rcnn": (RCNNConfig, RCNN),
}
"""Configuration and network for each kind of detector."""


REST = "rest"
"""Metadata of a packaged file: the packaged detector that has the tensors which this file lacks, for example the same
frozen trunk."""


def packaged(name: str = "packaged") -> Detector:
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


def load(path: Path, name: str | None = None) -> Detector:
    """Load a detector from a file of :meth:`..detector.Detector.save`, in eval mode, with float32 weights.

    Raises DeformscopeError for other files, and if the weights do not fit the configuration.
    """
    return _built(path, *read(path), name)


def _built(path: Path, metadata: dict[str, str], state: dict[str, Tensor], name: str | None) -> Detector:
    kind = metadata.get("architecture", "")
    kind = ARCHITECTURES.get(kind, kind)
    if kind not in KINDS:
        raise DeformscopeError(
            f"{path}: architecture {kind!r} in its metadata; expected a file that deformscope saved, "
            f"of {', '.join(KINDS)}"
        )
    config_type, network = KINDS[kind]
    try:
        config: Any = from_dict(config_type, _present(json.loads(metadata.get("config", "null"))), "config")
        with torch.device("meta"):  # initial weights would take memory and time and be replaced at once
            detector: Detector = network(config, name or path.stem)
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


def _present(config: Any) -> Any:
    """A configuration with its former keys replaced by the present ones."""
    if not isinstance(config, dict):
        return config
    return {CONFIG_KEYS.get(key, key): value for key, value in config.items()}

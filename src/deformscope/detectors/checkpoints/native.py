"""The detector that comes with the package, and checkpoints of its kind: one safetensors with its configuration."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ...errors import DeformscopeError
from ...files import write_tensors
from ..dense.dense import DenseConfig, DenseDetector
from ..dense.dense_rcnn import DenseRCNN, DenseRCNNConfig
from .former_names import ARCHITECTURES, CONFIG_KEYS

KINDS: dict[str, tuple[type[DenseConfig], type[DenseDetector]]] = {
    "dense": (DenseConfig, DenseDetector),
    "dense_rcnn": (DenseRCNNConfig, DenseRCNN),
}
"""By the name of the architecture: its configuration and its network."""


def load() -> DenseDetector:
    """The packaged detector, in eval mode: see ``weights/MODEL_CARD.md`` for its data, recipe and measured AP."""
    with as_file(files("deformscope") / "weights" / "packaged.safetensors") as path:
        return load_file(path, "packaged")


def load_file(path: Path, name: str | None = None) -> DenseDetector:
    """A detector from a file that :func:`save` wrote, in eval mode, its weights widened to float32."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as error:
        raise DeformscopeError(f"{path}: no readable safetensors file ({error}); get the file again") from None
    architecture = metadata.get("architecture", "")
    architecture = ARCHITECTURES.get(architecture, architecture)
    if architecture not in KINDS:
        raise DeformscopeError(f"{path}: architecture {architecture!r}; expected one of {', '.join(KINDS)}")
    make_config, make = KINDS[architecture]
    try:
        values = {CONFIG_KEYS.get(key, key): value for key, value in json.loads(metadata["config"]).items()}
        config = make_config(**values | {"class_names": tuple(values["class_names"])})
        detector = make(config, name or path.stem)
        own = detector.state_dict()
        # Batch counters say nothing once the statistics are frozen; they are not kept in the file.
        detector.load_state_dict({k: v for k, v in own.items() if k.endswith("num_batches_tracked")} | tensors)
    except (AttributeError, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = str(error).replace("\n", " ")
        raise DeformscopeError(f"{path}: its configuration and weights do not fit ({reason}); save it again") from None
    return detector.eval()


def knows(detector: DenseDetector) -> bool:
    """:func:`save` can keep it: it is of one of :data:`KINDS`, and not of a subclass."""
    return any(type(detector) is kind for _, kind in KINDS.values())


def save(detector: DenseDetector, path: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write weights (in ``dtype``) and configuration; the file appears whole or not at all."""
    tensors = {
        key: value.detach().cpu().to(dtype, copy=True).contiguous()
        for key, value in detector.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    architecture = next(name for name, (_, kind) in KINDS.items() if type(detector) is kind)
    metadata = {"architecture": architecture, "config": json.dumps(asdict(detector.config))}
    write_tensors(path, tensors, metadata)

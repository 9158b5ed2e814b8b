"""deformscope's own checkpoints of two-stage detectors: safetensors with the configuration in the metadata."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import DeformscopeError
from ...files import write_tensors
from ..rcnn.config import RCNNConfig
from ..rcnn.rcnn import RCNN
from .architecture import assemble

ARCHITECTURE = "rcnn"


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DeformscopeError(f"{path}: no readable safetensors file ({error}); get the file again") from None


def load(path: Path, name: str) -> RCNN:
    """A detector from a file that :func:`save` wrote, in eval mode."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = metadata(path)
    if about.get("architecture") != ARCHITECTURE:
        raise DeformscopeError(
            f"{path}: architecture {about.get('architecture')!r} in its metadata; "
            "expected a file that deformscope saved"
        )
    try:
        config = RCNNConfig.from_values(json.loads(about["config"]))
        state = load_file(path)
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, OSError) as error:
        reason = str(error).replace("\n", " ")
        raise DeformscopeError(f"{path}: its configuration cannot be read ({reason}); save it again") from None
    return assemble(path, state, config, name, lambda key: key)


def save(detector: RCNN, path: Path) -> None:
    """Write weights and configuration; the file appears whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in detector.state_dict().items()}
    write_tensors(path, tensors, {"architecture": ARCHITECTURE, "config": json.dumps(detector.config.to_values())})

"""Checkpoints of deformscope and other frameworks; files are untrusted."""

from __future__ import annotations

from pathlib import Path

from ...errors import DeformscopeError
from ..detector import TrainableDetector
from ..options import Weights


def load_file(path: Path, name: str, weights: Weights = "plain") -> TrainableDetector:
    """Load a detector from a checkpoint file; its format is recognised by its content."""
    from . import detectron2, mmdet, native, unpickle as reading

    kind = reading.kind(path)
    if kind == "safetensors":
        if weights != "plain":
            raise DeformscopeError(f"{path}: weights={weights!r}: the file has one set of weights; leave it out")
        return native.load(path, name)
    content = reading.read_torch(path) if kind == "torch" else reading.read_pickle(path)
    if isinstance(content.get("model"), dict) and detectron2.is_detectron2(content["model"]):
        return detectron2.load(path, content, name, weights)
    state = content.get("state_dict", content)
    if isinstance(state, dict) and mmdet.is_mmdet(state):
        return mmdet.load(path, content, name, weights)
    raise DeformscopeError(
        f"{path}: no detector of MMDetection or Detectron2 (keys: {', '.join(map(str, list(content)[:4])) or 'none'}); "
        "expected a Faster or Mask R-CNN with a ResNet-FPN"
    )

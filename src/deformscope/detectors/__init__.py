"""Detectors by name or file, and what they are made of."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapted import adapt as adapt
    from .deform import DeformConv as DeformConv, set_offset_mode as set_offset_mode
    from .detector import Batch as Batch, Detector as Detector, TrainableDetector as TrainableDetector
    from .huggingface import of_transformers as of_transformers
    from .rcnn import build as build
    from .zoo import load as load

_HOMES = {
    "Batch": "detector",
    "DeformConv": "deform",
    "Detector": "detector",
    "TrainableDetector": "detector",
    "adapt": "adapted",
    "build": "rcnn",
    "load": "zoo",
    "of_transformers": "huggingface",
    "set_offset_mode": "deform",
}
"""Imported when they are first asked for: names of detectors are listed without torch."""
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deformscope.detectors' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value

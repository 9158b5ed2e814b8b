"""Training: recipes, data, runs, the ablation of Table 1, and supervision of offsets for any training loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .supervision import OffsetSupervision as OffsetSupervision, Schedule as Schedule

_LAZY = ("OffsetSupervision", "Schedule")  # recipes are read without torch


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'deformscope.training' has no attribute {name!r}")
    return getattr(import_module(".supervision", __name__), name)

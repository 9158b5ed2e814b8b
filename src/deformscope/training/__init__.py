"""Training: recipes, data, runs, the ablation of Table 1, and supervision of offsets for any training loop."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .callbacks import SuperviseOffsets as SuperviseOffsets
    from .supervision import OffsetSupervision as OffsetSupervision, Schedule as Schedule

_HOMES = {"OffsetSupervision": "supervision", "Schedule": "supervision", "SuperviseOffsets": "callbacks"}
"""Imported when they are first asked for. Only ``SuperviseOffsets`` needs Lightning."""
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deformscope.training' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value

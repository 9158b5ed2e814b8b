"""The paper's claims, measured: metrics, nulls, intervals, and a run over an annotated folder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mask_scores import MaskScores as MaskScores
    from .masks import MaskSettings as MaskSettings, measure_masks as measure_masks, read_masks as read_masks
    from .report import write_report as write_report
    from .runner import Progress as Progress, Settings as Settings, read_scores as read_scores, score as score
    from .scores import Scores as Scores

_HOMES = {
    "MaskScores": "mask_scores",
    "MaskSettings": "masks",
    "Progress": "runner",
    "Scores": "scores",
    "Settings": "runner",
    "measure_masks": "masks",
    "read_masks": "masks",
    "read_scores": "runner",
    "score": "runner",
    "write_report": "report",
}
"""Where the public names are defined. They are imported when they are first asked for: reports need matplotlib."""
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deformscope.score' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

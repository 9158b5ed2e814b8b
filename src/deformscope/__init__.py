"""deformscope: see, measure and use what deformable convolutions learn."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .capture.recorder import capture as capture
from .errors import DeformscopeError as DeformscopeError, NoDeformableCall as NoDeformableCall
from .explain.explain import explain as explain
from .fields.field import CellGrid as CellGrid, OffsetField as OffsetField, Placement as Placement
from .fields.fields import Fields as Fields
from .fields.viewpoint import divergence as divergence, extent as extent, radius as radius, split as split

if TYPE_CHECKING:
    from . import draw as draw
    from .analysis import Analysis as Analysis, analyse as analyse
    from .detectors.zoo import load as load
    from .explorer import explore as explore
    from .fields.segments import segments as segments
    from .health.diagnose import diagnose as diagnose

__version__ = "0.1.0"

# What pulls in torchvision or matplotlib is imported when it is first asked for.
_LAZY = {
    "draw": None,
    "Analysis": "analysis",
    "analyse": "analysis",
    "load": "detectors.zoo",
    "explore": "explorer",
    "segments": "fields.segments",
    "diagnose": "health.diagnose",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'deformscope' has no attribute {name!r}")
    home = _LAZY[name]
    return import_module(f".{name}", __name__) if home is None else getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

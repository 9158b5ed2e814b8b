"""deformscope: see, measure and use what deformable convolutions learn."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import DeformscopeError as DeformscopeError, NoDeformableCall as NoDeformableCall

if TYPE_CHECKING:
    from . import draw as draw
    from .analysis import Analysis as Analysis, analyse as analyse
    from .attribution.explain import explain as explain
    from .detectors.adapted import adapt as adapt
    from .detectors.zoo import load as load
    from .explorer import explore as explore
    from .fields.field import OffsetField as OffsetField
    from .fields.fields import Fields as Fields
    from .fields.places import CellGrid as CellGrid, Placement as Placement
    from .fields.segments import segments as segments
    from .fields.viewpoint import divergence as divergence, extent as extent, radius as radius, split as split
    from .health.diagnose import diagnose as diagnose
    from .recording.capture import capture as capture, placed as placed

__version__ = "0.1.0"

_HOMES = {
    "Analysis": "analysis",
    "CellGrid": "fields.places",
    "Fields": "fields.fields",
    "OffsetField": "fields.field",
    "Placement": "fields.places",
    "adapt": "detectors.adapted",
    "analyse": "analysis",
    "capture": "recording.capture",
    "diagnose": "health.diagnose",
    "divergence": "fields.viewpoint",
    "explain": "attribution.explain",
    "explore": "explorer",
    "extent": "fields.viewpoint",
    "load": "detectors.zoo",
    "placed": "recording.capture",
    "radius": "fields.viewpoint",
    "segments": "fields.segments",
    "split": "fields.viewpoint",
}
"""Where the public names are defined. They are imported when they are first asked for: help needs no torch."""
__all__ = ["DeformscopeError", "NoDeformableCall", "draw", *_HOMES]  # noqa: PLE0604  (its names are strings)
_ROOMS = (
    "datasets",
    "detectors",
    "draw",
    "explorer",
    "fields",
    "health",
    "metrics",
    "ops",
    "photo",
    "score",
    "training",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    elif name in _ROOMS:
        value = import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'deformscope' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})

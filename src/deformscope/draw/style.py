"""How figures look: colours, and matplotlib's default settings instead of the user's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import warnings_ignored

# matplotlib does not load where MPLBACKEND names a backend that this environment lacks, as when it is inherited from a
# notebook. Figures need none, so it is set afterwards, where it can be.
inherited = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
try:
    import matplotlib as mpl
finally:
    if inherited is not None:
        os.environ["MPLBACKEND"] = inherited
if inherited:
    with suppress(ValueError):
        mpl.rcParams["backend"] = inherited

ARROW = "#d7191c"
TREND = "#ffd43b"
TOGETHER = "#00a087"
"""Circles of kernels that are drawn together; no colour of :data:`SIZE_MAP`."""
MASK = (0.90, 0.05, 0.10)
BOX = "#00b8d9"
PLACES = ("#ff3d00", "#00b0ff", "#ffd600", "#00e676", "#e040fb", "#ffffff")
INK, FAINT = "#1a1a1a", "#666666"
SIZE_MAP, MODULATION_MAP, SIGNED_MAP = "plasma", "viridis", "RdBu_r"

OF_THE_PROCESS = frozenset(
    {
        "backend",
        "backend_fallback",
        "date.epoch",
        "docstring.hardcopy",
        "figure.max_open_warning",
        "figure.raise_window",
        "interactive",
        "savefig.directory",
        "timezone",
        "tk.window_focus",
        "toolbar",
        "webagg.address",
        "webagg.open_in_browser",
        "webagg.port",
        "webagg.port_retries",
    }
)
"""Settings that do not affect the look of figures; those of the user are kept."""


def _own() -> dict[Any, Any]:
    with warnings_ignored():  # some settings are deprecated
        own = {key: value for key, value in mpl.rcParamsDefault.items() if key not in OF_THE_PROCESS}
    return own | {
        "axes.titley": 1.0,  # without this, each panel makes ticks only to check whether a title overlaps them
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "deformscope",
    }


OWN = _own()
_inside = False


@contextmanager
def own_settings() -> Iterator[None]:
    """Draw with matplotlib's defaults, whatever matplotlibrc, style sheets and ``rcParams`` say. Also a decorator.

    Example:
        >>> with ds.draw.own_settings():
        ...     figure = matplotlib.figure.Figure()
    """
    global _inside  # noqa: PLW0603  (matplotlib's settings are the process's, too)
    if _inside:
        yield
        return
    with mpl.rc_context(OWN):
        _inside = True
        try:
            yield
        finally:
            _inside = False

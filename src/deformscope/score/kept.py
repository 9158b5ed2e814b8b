"""Photos that a run keeps for its report, with their offsets: the best and worst of each layer, and some at random.

Which layer and which photos the report shows is known only at the end of a run. A photo that is among the best of all
is among the best of any subset, so each process keeps the best and worst of its share and deletes the others.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ..analysis import Analysis
from ..fields.fields import Fields
from .summary.columns import Record

FOLDER = "photos"
SHOWN = 3
"""Photos shown of the best, and of the worst."""
AT_RANDOM = 12
"""The first photos in the random order, which are kept whatever their metrics."""


class Kept:
    """The photos that are kept in the folder of a run, updated with each record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.ranked: dict[tuple[str, bool, int], list[tuple[float, int]]] = {}
        """By layer, whether all objects have masks, and sign: the highest of sign · AUROC, with the photos' indices."""

    def add(self, record: Record, analysis: Analysis | None = None) -> None:
        """Rank a photo, and save its ``analysis`` if it is one to keep.

        Without an analysis only rank it, as for the photos of a run that is resumed, which have been saved already.
        """
        index, view = record["index"], record.get("views", {}).get("whole")
        if view is None:
            return
        layers, gone = set(), set()
        for layer, sources in view["layers"].items():
            auroc = sources.get("field", {}).get("image", {}).get("auroc", math.nan)
            if not math.isfinite(auroc):
                continue
            for sign in (1, -1):
                first = self.ranked.setdefault((layer, view["masked"], sign), [])
                first.append((sign * auroc, -index))  # of equal ones the earlier
                first.sort(reverse=True)
                gone |= {-other for _, other in first[SHOWN:]}
                del first[SHOWN:]
                if (sign * auroc, -index) in first:
                    layers.add(layer.partition(":")[0])
        if analysis is not None and (layers or index < AT_RANDOM):
            _save(analysis, self.folder / _name(index), None if index < AT_RANDOM else layers)
        wanted = {-other for first in self.ranked.values() for _, other in first}
        for other in gone - wanted:
            if other >= AT_RANDOM:
                (self.folder / _name(other)).unlink(missing_ok=True)


def _save(analysis: Analysis, path: Path, layers: set[str] | None) -> None:
    # Half precision is enough for figures.
    fields = {
        name: replace(field, offset=field.offset.half(), modulation=None)
        for name, field in analysis.fields.items()
        if layers is None or name in layers
    }
    replace(analysis, fields=Fields(fields)).save(path)


def kept(folder: Path, index: int, layer: str) -> Analysis | None:
    """A photo that a run kept, with the field of ``layer``; None where it was not kept."""
    path = folder / FOLDER / _name(index)
    if not path.exists():
        return None
    analysis = Analysis.load(path)
    if layer not in analysis.fields:
        return None
    field = analysis.fields[layer]
    return replace(analysis, fields=Fields({layer: replace(field, offset=field.offset.float())}))


def _name(index: int) -> str:
    return f"{index:06}.safetensors"

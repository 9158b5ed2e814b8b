"""Tables of results.json, which measure.py writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = {
    "centre_error": "mean to box's centre, in object sizes",
    "centroid_error": "mean to mask's centroid, in object sizes",
    "towards": "d_f towards the object, correlation",
    "towards_mask": "d_f towards the mask's centroid, correlation",
    "in_box": "weight in the object's box",
    "in_mask": "weight on its mask",
    "radius_rank": "radius and size, rank correlation",
    "radius_corrects": "radius and the reference's error of size",
    "radius_to_size": "radius / size",
}
NAMED = {
    "points": "points, weighted",
    "uniform": "points, equal weights",
    "shuffled": "another query's points",
    "fresh": "fresh offsets",
    "reference": "reference box, evenly filled",
}


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The tables, by detector, data and layer."""
    lines = ["# Object queries: all tables", "", "Means and 95 % intervals over photos.", ""]
    for result in results:
        lines += [
            f"## {result['detector']} on {result['data']}",
            "",
            f"{result['matched']} of {result['annotated']} annotated objects on {result['photos']} photos are matched.",
            "",
        ]
        for number, layer in enumerate(result["layers"]):
            lines += [f"**Decoder layer {number + 1} of {len(result['layers'])}**", ""]
            lines += [f"| samples | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
            for source, told in layer["sources"].items():
                lines.append(f"| {NAMED[source]} | {' | '.join(_cell(told[key]) for key in COLUMNS)} |")
            heads = ("centre_error", "centroid_error", "in_box", "in_mask")
            lines += ["", f"| points − null | {' | '.join(COLUMNS[key] for key in heads)} | nearer to the centre |"]
            lines += ["|---" * (len(heads) + 2) + "|"]
            for source, told in layer["over"].items():
                cells = [*(_cell(told[key], signed=True) for key in heads), _cell(told["nearer"])]
                lines.append(f"| {NAMED[source]} | {' | '.join(cells)} |")
            lines += ["", f"Chance of a point on a mask, anywhere on the photo: {_cell(layer['chance'])}.", ""]
    return "\n".join(lines)


def _cell(told: Sequence[float], signed: bool = False) -> str:
    value, low, high = told
    if value is None:
        return "–"
    sign = "+" if signed else ""
    return f"{value:{sign}.3f} ({low:{sign}.3f}, {high:{sign}.3f})".replace("-", "−")

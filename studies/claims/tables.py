"""Write tables.json from the folders that `deformscope score` filled; the documentation shows it as tables.

python studies/claims/tables.py voc_animals=DIR coco_small=DIR
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

TABLES = Path(__file__).with_name("tables.json")
LAYERS = "heads.stride16.deform", "heads.stride32.deform"
FEWEST = 100
"""Classes with at most so many objects have no row."""
NULLS = ("fresh", "shuffled", "noise", "centre", "zero")
PARTS = {"whole": "whole photos", "crop": "off-centre crops", "several objects": "photos with several objects"}
METRICS = {
    "pointing": "strongest sink on an object",
    "pointing_ring": "… less chance at its distance from the photo's centre",
    "cosine": "cosine of d_f with the direction to the object's centre",
    "sink_distance": "sink to the object's centre, √area (less is better)",
    "moved_distance": "cells to the centre after moving by d_f, √area (less is better)",
    "iou": "IoU of divergence < 0",
    "iou_best": "IoU at the best threshold",
    "auroc": "AUROC of −divergence",
    "auroc_ring": "AUROC at equal distance from the photo's centre",
    "corloc_segment": "CorLoc of the best segment",
    "mask_ap50": "segments, class-agnostic AP 50",
    "spearman_centre": "Spearman ρ of r with √(wh), box's centre",
    "spearman_largest": "Spearman ρ, largest circle",
    "error_centre": "median relative error of a·r, box's centre (less is better)",
}
BY_PART = ("pointing", "auroc", "auroc_ring", "cosine", "spearman_centre", "error_centre")
HEAD = """# The paper's claims on the packaged detector: all metrics

The runs are described in [claims.md](../results/claims.md); metrics and nulls are defined in [score.md](../score.md). Intervals are 95 %, by bootstrap over photos. "Gain over the centre" is how much better the
offsets are than the photo's centre, paired, in the unit of the metric. "Filled boxes" are the detected boxes. Difficult
objects and crowds do not count; metrics that compare places are of the photos all of whose objects have masks.
"""
SIZES = f"""## By size and class

A photo belongs to the size and class of its largest object; sizes are COCO's (box areas of 32² and 96² px²). In
parentheses the photo's centre. Classes of more than {FEWEST} objects.
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", metavar="NAME=DIR")
    runs = dict(one.split("=", 1) for one in parser.parse_args().runs)
    scores = {name: json.loads((Path(folder) / "scores.json").read_text()) for name, folder in runs.items()}
    lines = [HEAD]
    for layer in LAYERS:
        lines += [f"## Metrics of `{layer}`", ""]
        for name, content in scores.items():
            parts = {part["name"]: part for part in content["parts"]}
            for which in PARTS:
                lines += metrics(name, parts[which], layer) if which in parts else []
    lines.append(SIZES)
    for layer in LAYERS:
        lines += [f"`{layer}`:", "", *sizes(scores, layer), ""]
    for name, folder in runs.items():
        tables = (Path(folder) / "tables.md").read_text()
        lines += ["", f"## All metrics: {name}", "", tables.strip()]
    blocks = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()]
        if part.startswith("|")
        else part
        for part in re.split(r"\n\n+", "\n".join(lines).strip())
    ]
    TABLES.write_text("[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in blocks) + "\n]\n")
    print(TABLES)


def markdown(blocks: list[str | list[list[str]]]) -> str:
    """Paragraphs and tables as a page."""
    return "\n\n".join(one if isinstance(one, str) else "\n".join(row(*cells) for cells in one) for one in blocks) + "\n"


def metrics(name: str, part: dict[str, Any], layer: str) -> list[str]:
    """A table of one part, one row per metric."""
    lines = [f"**{name}, {PARTS[part['name']]}** ({part['photos']} photos, {part['objects']} objects):", ""]
    lines += [row("metric", "n", "offsets", *NULLS, "gain over the centre", "filled boxes"), row(*["---"] * 10)]
    for metric, text in METRICS.items():
        found = measured(part, metric, layer)
        if found is None:
            continue
        sources = found["sources"]
        nulls = [number(sources.get(null, [None])[0]) for null in NULLS]
        gain, filled = found["gains"].get("centre"), sources.get("filled", [None])[0]
        lines.append(row(text, str(found["n"]), interval(sources["field"]), *nulls, interval(gain), number(filled)))
    return [*lines, ""]


def sizes(scores: dict[str, Any], layer: str) -> list[str]:
    """A table of all sizes and classes."""
    headings = ("sink on an object (centre)", "AUROC (centre)", "at equal distance", "cosine (centre)")
    lines = [
        row("part", "photos", "objects", *headings, "ρ of r, box's centre", "relative error of a·r"),
        row(*["---"] * 9),
    ]
    for name, content in scores.items():
        for part in content["parts"]:
            if part["name"].startswith("size") or (part["name"].startswith("class") and part["objects"] > FEWEST):
                cells = [cell(part, metric, layer) for metric in BY_PART]
                lines.append(row(f"{name}, {part['name']}", str(part["photos"]), str(part["objects"]), *cells))
    return lines


def cell(part: dict[str, Any], metric: str, layer: str) -> str:
    """A metric with its interval and, for some metrics, that of the photo's centre."""
    found = measured(part, metric, layer)
    if found is None:
        return "–"
    centre = found["sources"].get("centre", [None])[0] if metric in ("pointing", "auroc", "cosine") else None
    return interval(found["sources"]["field"]) + ("" if centre is None else f" ({number(centre)})")


def measured(part: dict[str, Any], metric: str, layer: str) -> dict[str, Any] | None:
    return next((one for one in part["rows"] if one["layer"] == layer and one["figure"] == metric), None)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def interval(value: list[float | None] | None) -> str:
    if value is None or value[0] is None:
        return "–"
    return f"{number(value[0])} [{number(value[1])}, {number(value[2])}]"


def number(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")


if __name__ == "__main__":
    main()

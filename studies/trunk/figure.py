"""The dose curve of the runs of trunk.py: what offsets gain, and what appears in them, against what a cell sees."""

from pathlib import Path
from typing import Any

import numpy as np

SHOWN = {
    ("crop", "pointing"): "sink on an object, crops",
    ("whole", "auroc_ring"): "AUROC of −divergence, equal distance",
    ("whole", "cosine"): "cosine with the way to the centre",
    ("whole", "spearman_centre"): "ρ of r with √(wh)",
}
"""Measures of the right panel: where the photo's centre explains least."""
NULLS = ("fresh", "shuffled", "noise", "centre")


def dose_curve(found: list[dict[str, Any]], runs: list[dict[str, Any]], size: float, path: Path) -> None:
    """AP that offsets gain in each trunk of ``found``, and what its fields show, all seeds, beside the best null."""
    import matplotlib.pyplot as plt

    fig, (ax, right) = plt.subplots(1, 2, figsize=(10, 3.8), dpi=120, layout="constrained")
    for pyramid, marker, color, label in ((False, "o", "C0", "without pyramid"), (True, "s", "C1", "with pyramid")):
        own = [one for one in found if one["pyramid"] == pyramid]
        if own:
            x, mean = [one["sees"] / size for one in own], np.array([one["mean"] for one in own])
            error = np.abs([[one[side] for one in own] for side in ("low", "high")] - mean)
            ax.errorbar(x, mean, error, marker=marker, color=color, capsize=3, label=label)
            for place, one in zip(x, own, strict=True):
                ax.annotate(
                    one["arm"].rstrip("p").replace("cut", "cut "),
                    (place, one["mean"]),
                    (6, -12),
                    textcoords="offset points",
                    fontsize=8,
                )
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.set_ylabel("AP full − none, 95 % over photos")
    if any(one["pyramid"] for one in found):
        ax.legend(frameon=False, loc=(0.02, 0.08))
    plain = [one for one in found if not one["pyramid"]]
    for number, (kind, label) in enumerate(SHOWN.items()):
        color, shift = f"C{number + 2}", 0.012 * (number - 1.5)
        means, nulls = [], []
        for one in plain:
            rows = [
                _row(run, kind) for run in runs if run["recipe"] == "animals" and run["arm"] == one["arm"] + "-full"
            ]
            values = [row["sources"]["field"] for row in rows if row]
            place = one["sees"] / size + shift
            for value, low, high in values:
                right.errorbar(place, value, [[value - low], [high - value]], fmt="o", color=color, markersize=4)
            means.append(np.mean([value for value, *_ in values]))
            nulls.append(np.mean([_best_null(row) for row in rows if row]))
        at = [one["sees"] / size + shift for one in plain]
        right.plot(at, means, color=color, label=label)
        right.plot(at, nulls, color=color, linestyle=":")
    right.plot([], [], color="0.4", linestyle=":", label="its best null")
    right.set_ylim(0, 1)
    right.set_ylabel("of the composed field, 95 % over photos")
    right.legend(frameon=False, fontsize=7.5, loc="lower right")
    for one, margin in ((ax, 0.2), (right, 0.12)):
        one.margins(x=margin)
        one.set_xlabel(f"receptive field over the objects' mean size ({size:.0f} px)")
    fig.savefig(path)
    plt.close(fig)


def _row(run: dict[str, Any], kind: tuple[str, str]) -> dict[str, Any] | None:
    return next((row for row in run["claims"] if (row["view"], row["metric"]) == kind), None)


def _best_null(row: dict[str, Any]) -> float:
    values = [row["sources"][null][0] for null in NULLS if null in row["sources"]]
    return max(value for value in values if value is not None)

"""The ablation as a picture: every run's AP by mode, seeds joined, beside the paper's Table 1."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ...detectors.offset_mode import OFFSET_MODES
from ...draw.own_settings import own_settings
from ...draw.save import save
from ...draw.style import BOX, FAINT, INK
from .summary import NAMES, PAPER, Summary


@own_settings()
def plot(summary: Summary, path: Path) -> Path:
    """Left, this ablation: a thin line per seed, and the mean; right, the paper's AP on COCO."""
    figure = Figure(figsize=(8.4, 3.4), facecolor="white", layout="constrained")
    own, paper = figure.subplots(1, 2)
    modes = [mode for mode in OFFSET_MODES if mode in summary.values]
    places = {mode: place for place, mode in enumerate(modes)}
    for seed in sorted({seed for values in summary.values.values() for seed in values}):
        line = [(places[mode], summary.values[mode][seed]) for mode in modes if seed in summary.values[mode]]
        own.plot(*zip(*line, strict=True), color=FAINT, linewidth=0.8, marker="o", markersize=3, alpha=0.7)
    own.plot([places[m] for m in modes], [summary.mean(m) for m in modes], color=BOX, linewidth=2.2, label="mean")
    own.set_title("this ablation: a line per seed, and their mean", fontsize=9, color=INK)
    own.legend(frameon=False, fontsize=8)
    for (name, figures), style in zip(PAPER.items(), ("-", "--", ":"), strict=True):
        paper.plot([places[m] for m in modes], [figures[m] for m in modes], style, color=INK, marker="o", label=name)
    paper.set_title("the paper, COCO", fontsize=9, color=INK)
    paper.legend(frameon=False, fontsize=8)
    for ax in (own, paper):
        ax.set_xticks(range(len(modes)), [NAMES[mode] for mode in modes])
        ax.set_ylabel("AP, %")
        ax.spines[["top", "right"]].set_visible(False)
    return save(figure, path)

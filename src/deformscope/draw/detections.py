"""Detections over a photo: one box per place, a handful at most, and labels that can be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patheffects import withStroke
from torch import Tensor

from . import style
from .text import ASCENT, FAMILY, LINE, drawable, escaped, families, width

MOST_BOXES = 5
SAME_PLACE = 0.5
"""IoU from which two boxes stand for the same place, whatever their classes."""
POINTS, MARGIN = 7, 2.5
"""Size of a label's type and room around it, points."""


def shown_detections(
    detection: dict[str, Tensor], min_score: float, most: int = MOST_BOXES, same_place: float = SAME_PLACE
) -> Tensor:
    """The indices of the detections to draw, best first: class-agnostic suppression leaves one box per place.

    A detector that gives one animal boxes of three classes would hide it behind them. Without scores all count alike.
    """
    from torchvision.ops import nms

    boxes = detection.get("boxes")
    if boxes is None or not len(boxes):
        return torch.zeros(0, dtype=torch.long)
    scores = detection.get("scores", torch.ones(len(boxes)))
    usable = (boxes.isfinite().all(dim=1) & (scores >= min_score)).nonzero().flatten()
    return usable[nms(boxes[usable].float(), scores[usable].float(), same_place)][:most]


def boxes(
    ax: Axes,
    detection: dict[str, Tensor],
    class_names: Sequence[str] = (),
    *,
    min_score: float = 0.5,
    labels: bool = True,
    most: int = MOST_BOXES,
    same_place: float = SAME_PLACE,
) -> PolyCollection:
    """Outlines of the best ``most`` detections (xyxy px) that score at least ``min_score``, with class and score.

    Of boxes whose IoU exceeds ``same_place`` only the best is drawn, whatever their classes (1: all of them).

    Example:
        >>> ax = matplotlib.figure.Figure().subplots()
        >>> artists = ds.draw.boxes(ax, detector("photo.jpg")[0], detector.class_names, min_score=0.4)
    """
    index = shown_detections(detection, min_score, most, same_place).cpu()
    corners = np.asarray(detection["boxes"].cpu()[index], dtype=float) if len(index) else np.zeros((0, 4))
    outlines = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, y0, x1, y1 in corners]
    artist = PolyCollection(outlines, facecolors="none", edgecolors=style.BOX, linewidths=1.4, zorder=4)
    artist.set_path_effects([withStroke(linewidth=2.6, foreground=(1, 1, 1, 0.8))])
    ax.add_collection(artist, autolim=False)
    if labels and "labels" in detection:
        scores = detection["scores"].cpu()[index].tolist() if "scores" in detection else [None] * len(corners)
        taken: list[Frame] = []
        for box, label, score in zip(corners, detection["labels"].cpu()[index].tolist(), scores, strict=True):
            name = class_names[label] if 0 <= label < len(class_names) else ""
            words = drawable(name) or str(label)
            _label(ax, box, words if score is None else f"{words} {score:.2f}", taken)
    return artist


Frame = tuple[float, float, float, float]
"""Left, right, bottom and top of a label, points."""


def _label(ax: Axes, box: np.ndarray, text: str, taken: list[Frame]) -> None:
    """Write a label at a box's upper left corner: inside the axes, and below those labels that it would cover."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    to_points = 72 / figure.dpi
    corner = max(box[0], 0.0), max(box[1], 0.0)
    left, top = ax.transData.transform(corner) * to_points
    across, tall = width(escaped(text), POINTS) * 72 + 2 * MARGIN, LINE * POINTS + 2
    right_edge, bottom_edge = ax.bbox.x1 * to_points, ax.bbox.y0 * to_points
    begin = max(min(left, right_edge - across), ax.bbox.x0 * to_points)
    lines = 0
    while top - (lines + 1) * tall > bottom_edge and any(
        begin < right and low < begin + across and bottom < top - lines * tall and top - (lines + 1) * tall < high
        for low, right, bottom, high in taken
    ):
        lines += 1
    taken.append((begin, begin + across, top - (lines + 1) * tall, top - lines * tall))
    ax.annotate(
        text,
        corner,
        xytext=(begin - left + MARGIN, -lines * tall - MARGIN - ASCENT * POINTS),
        textcoords="offset points",
        fontsize=POINTS,
        color="white",
        va="baseline",
        fontfamily=list(families(text)) or FAMILY,
        bbox={"facecolor": style.BOX, "edgecolor": "none", "pad": 1.2},
        zorder=5,
        annotation_clip=True,
        parse_math=False,
    )

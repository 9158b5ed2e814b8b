"""The samples of one object query in one layer: numpy arrays in photo px, and how they are drawn on a panel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.markers import MarkerStyle
from matplotlib.patches import Ellipse, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

from ..fields.attention import AttentionField
from .style import BOX, FAINT

WEIGHTS = "plasma"
MARKERS = ("o", "s", "D", "^", "p")
"""Of the levels' maps, in their order."""
LEAST_AREA, MOST_AREA = 5.0, 95.0
"""Of a point without weight, and of the heaviest, in square points."""
MEAN = "#76ff03"


@dataclass(frozen=True)
class QueryView:
    """Where one query looks in one layer, (y, x) in photo px."""

    points: np.ndarray
    """[m 2]: of all heads and levels."""
    weights: np.ndarray
    """[m]: sum 1."""
    level: np.ndarray
    """[m]."""
    heads: np.ndarray
    """[h 2]: the weighted mean of each head's points."""
    reference: np.ndarray
    """[2]: the reference point, or the centre of the reference box."""
    box: np.ndarray | None
    """(top, left, bottom, right) of the reference box."""

    @classmethod
    def of(cls, field: AttentionField, query: int, head: int | None = None) -> QueryView:
        """View one query of ``field`` (n = 1), with all heads or one."""
        chosen = slice(None) if head is None else slice(head, head + 1)
        points = field.to_pixels(field.points[0, query, chosen].double()).numpy()  # [h p 2]
        weights = np.ones(points.shape[:2])
        if field.weights is not None:
            weights = field.weights[0, query, chosen].double().numpy()
        shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        reference = field.reference[0, query].double()
        box = None
        if field.has_boxes:
            half = reference[2:] / 2
            corners = torch.stack([reference[:2] - half, reference[:2] + half])
            box = field.to_pixels(corners).flatten().numpy()
        return cls(
            points.reshape(-1, 2),
            weights.ravel() / max(float(weights.sum()), 1e-12),
            np.tile(field.level.numpy(), len(points)),
            (shares[..., None] * points).sum(axis=1),
            field.to_pixels(reference[:2]).numpy(),
            box,
        )

    @property
    def centre(self) -> np.ndarray:
        """[2]: the weighted mean of all points."""
        return (self.weights[:, None] * self.points).sum(axis=0)

    @property
    def spread(self) -> np.ndarray:
        """[2]: their weighted standard deviation."""
        return np.sqrt((self.weights[:, None] * (self.points - self.centre) ** 2).sum(axis=0))

    def heavy(self, share: float) -> np.ndarray:
        """The heaviest points, which have ``share`` of the weight."""
        order = np.argsort(self.weights)[::-1]
        return self.points[order[: int(np.searchsorted(np.cumsum(self.weights[order]), share)) + 1]]

    def inside(self, box: np.ndarray) -> float:
        """The share of the weight in a box (top, left, bottom, right)."""
        return float(self.weights[((self.points >= box[:2]) & (self.points <= box[2:])).all(axis=1)].sum())


def rectangle(ax: Axes, box: np.ndarray, color: str, *, dashed: bool = False) -> None:
    """Outline (top, left, bottom, right), with a dark edge that can be seen on any photo."""
    (top, left), (high, wide) = box[:2], box[2:] - box[:2]
    for edge, width, dash in (("black", 2.6, "-"), (color, 1.4, "--" if dashed else "-")):
        ax.add_patch(Rectangle((left, top), wide, high, fill=False, ec=edge, lw=width, ls=dash, zorder=3))


def samples(ax: Axes, view: QueryView, most: float) -> PathCollection:
    """The sampling points, heavy ones on top: colour and area tell the weight (full at ``most``), the shape the map."""
    order = np.argsort(view.weights)
    strength = np.clip(view.weights[order] / most, 0, 1)
    dots = PathCollection(
        [marker(int(level)) for level in view.level[order]],
        LEAST_AREA + (MOST_AREA - LEAST_AREA) * strength,
        offsets=view.points[order, ::-1],
        offset_transform=ax.transData,
        facecolors=colormaps[WEIGHTS](strength),
        edgecolors="white",
        linewidths=0.5,
        zorder=4,
    )
    dots.set_transform(IdentityTransform())
    ax.add_collection(dots, autolim=False)
    return dots


def marker(level: int) -> Path:
    """The path of a level's points, of about the same area for each."""
    style = MarkerStyle(MARKERS[level % len(MARKERS)])
    return style.get_path().transformed(style.get_transform())


def moments(ax: Axes, view: QueryView) -> None:
    """The weighted mean (×) with an ellipse of one standard deviation, the mean of each head, and the reference (+)."""
    starts = np.broadcast_to(view.reference, view.heads.shape)
    if len(view.heads) > 1:
        rays = np.stack([starts[:, ::-1], view.heads[:, ::-1]], axis=1)
        for color, width in (("black", 1.6), ("white", 0.8)):
            lines = LineCollection(list(rays), colors=color, linewidths=width, alpha=0.75, zorder=3.4)
            ax.add_collection(lines, autolim=False)
    high, wide = 2 * view.spread
    for color, width in (("black", 2.6), (MEAN, 1.2)):
        ax.add_patch(Ellipse((view.centre[1], view.centre[0]), wide, high, fill=False, ec=color, lw=width, zorder=3.6))
    for place, sign, color, size in ((view.reference, "+", BOX, 10), (view.centre, "x", MEAN, 8)):
        ax.plot(*place[::-1], sign, ms=size + 1, mew=3.4, color="black", zorder=6)
        ax.plot(*place[::-1], sign, ms=size, mew=1.7, color=color, zorder=6)


def framed(ax: Axes) -> None:
    """A thin frame: what is shown may be a part of the photo."""
    for spine in ax.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.5)

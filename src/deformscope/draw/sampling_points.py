"""Where chosen cells sample: over the whole photo, or enlarged where their points are close together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..backdrop import Backdrop, on_photo
from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.stack import DEEPEST, stacked_points, upstream
from ..photo import Photo
from . import primitives, style
from .panels import FieldsLike, Window, as_list
from .primitives import escaped, shown_detections
from .sheet import row_of_panels
from .style import own_settings

WASH = 0.18
MOST_PLACES = 4
CLOSE, LEAST_PART = 0.22, 0.08
"""Points on less of the photo than the first are enlarged; never less than the second is shown."""
DOTS = (70, 95, 130)
"""A panel's longer side over the diameter of a point, by depth."""
MARK = 2.4
"""Size of the cell's mark over a point's, so that it is visible around one."""
MOST_OF_SIGMOID = 1.001
INSET = 0.3
"""Width of the small photo in the corner over the panel's."""


@dataclass(frozen=True)
class Points:
    """The sampling points of one cell through a stack of fields, (y, x) photo px."""

    cell: np.ndarray
    """[2]: the cell's centre."""
    regular: np.ndarray
    """[k 2]: the regular grid of the uppermost field."""
    reached: np.ndarray
    """[m 2]: the points in the lowest field's input; NaN where one is left out."""
    weights: np.ndarray | None
    """[m]: the modulation, where there is one."""
    full: float = 1.0
    """The modulation whose colour is brightest: 1, or more for layers that go beyond it."""

    @classmethod
    def of(cls, fields: Sequence[OffsetField], place: tuple[float, float], group: int = 0) -> Points:
        """Of the cell nearest to a place (y, x), stacked through ``fields``, lowest first."""
        top = fields[-1]
        cell = top.cell_at(place)
        stacked = stacked_points(fields, cell, group)
        return cls(
            cell=top.to_pixels(top.centres()[cell[0], cell[1]]).numpy(),
            regular=top.to_pixels(top.regular_points()[:, cell[0], cell[1]]).numpy(),
            reached=stacked.points[-1].numpy(),
            weights=stacked.weights[-1].numpy() if stacked.modulated else None,
            full=math.prod(map(_full, fields)),
        )

    def window(self, size: tuple[int, int], close: float = CLOSE) -> Window:
        """The part of a photo of ``size`` (h, w) that separates them; all of it where they fill ``close``."""
        known = np.concatenate([self.regular, self.reached])
        known = known[np.isfinite(known).all(axis=1)]
        (top, left), (bottom, right) = known.min(axis=0).tolist(), known.max(axis=0).tolist()
        return Window.around((left, top, right, bottom), size, close, LEAST_PART)


@own_settings()
def sampling(
    fields: FieldsLike,
    photo: Photo | None = None,
    places: Sequence[tuple[float, float]] | None = None,
    *,
    fit: str | None = None,
    detection: dict | None = None,
    depth: int = 1,
    min_score: float = 0.5,
    group: int = 0,
    zoom: bool = True,
) -> Figure:
    """The sampling points of chosen cells of the last of ``fields``, through it and the layers below it.

    ``depth`` (1-3) layers are followed, those through which the last field's input came (``field.below``), never
    parallel branches; all of them must be among ``fields``. The cells are those nearest to ``places`` ((y, x) photo
    px), else to the centres of the detected boxes that score at least ``min_score``, else to the photo's centre. Where
    points are close together, each cell is enlarged in its own panel, with the whole photo in its corner, unless
    ``zoom`` is False.

    Example:
        >>> ds.draw.sampling(field, "photo.jpg", [(150, 215)]).savefig("sampling.png")
    """
    backdrop, stack = on_photo(_stack(as_list(fields), depth), photo, fit)
    size = backdrop.size
    cells = list(places or centres_of_boxes(detection or {}, min_score, size) or [(size[0] / 2, size[1] / 2)])
    check_places(cells, size)
    points = [Points.of(stack, cell, group) for cell in cells]
    separate = zoom and any(one.window(size).width < size[1] for one in points)
    result = row_of_panels(len(points) if separate else 1, size)
    panels = result.flat()
    if separate:
        for number, (ax, one) in enumerate(zip(panels, points, strict=False)):
            sampling_panel(ax, backdrop, result.inches, {number: one}, depth, one.window(size, close=1.0))
    else:
        sampling_panel(panels[0], backdrop, result.inches, dict(enumerate(points)), depth)
    counts = "·".join(str(field.offset.shape[2]) for field in stack)
    total = int(np.prod([field.offset.shape[2] for field in stack]))
    modulated = any(one.weights is not None for one in points)
    meaning = f", coloured by modulation (dark 0, bright {points[0].full:g})" if modulated else ", a colour per cell"
    regular = "; lines from the regular grid" if depth == 1 else ""
    foot = result.caption(
        result.panels[-1][0],
        " ← ".join(escaped(field.name or "layer") for field in reversed(stack)),
        f"sampling points of {len(cells)} cell{'s' if len(cells) > 1 else ''} (+), "
        f"{counts if depth == 1 else f'{counts} = {total}'} each"
        f"{meaning if modulated or len(cells) > 1 else ''}{regular}",
        columns=len(result.panels[0]),
    )
    result.fit(0.0, foot)
    return result.figure


def sampling_panel(
    ax: Axes, backdrop: Backdrop, inches: float, points: Mapping[int, Points], depth: int, window: Window | None = None
) -> None:
    """Sampling points over the photo or a part of it, on a panel of this width.

    Points are coloured by their number, or by modulation; a part of the photo has the whole one in its corner.
    """
    window = window or Window.around(None, backdrop.size)
    primitives.photo(ax, backdrop.within(inches * backdrop.size[1] / window.width), WASH)
    diameter = max(window.height, window.width) / DOTS[depth - 1]
    dot = 72 * max(primitives.inches(ax)) / DOTS[depth - 1]
    for number, one in points.items():
        primitives.plus(ax, one.cell, MARK * dot, zorder=3.2)  # below the points, so that it hides none
        known = np.isfinite(one.reached).all(axis=1)
        if depth == 1:
            primitives.lines(ax, one.regular[known], one.reached[known], color=_color(number))
            primitives.points(ax, one.regular[known], diameter * 0.5, color="white")
        weights = None if one.weights is None else one.weights[known]
        primitives.points(ax, one.reached[known], diameter, color=_color(number), values=weights, limit=one.full)
    window.apply(ax)
    if window.width < backdrop.size[1]:
        number, one = next(iter(points.items()))
        inset(ax, backdrop.within(inches * INSET), window, one, _color(number))


def inset(ax: Axes, backdrop: Backdrop, window: Window, points: Points, color: str) -> None:
    """The whole photo small in the corner that hides fewest points, with the window marked."""
    height, width = backdrop.size
    share = (points.reached - (window.top, window.left)) / (window.height, window.width)
    corners = [(0.0, 0.0), (0.0, 1 - INSET), (1 - INSET, 0.0), (1 - INSET, 1 - INSET)]
    hidden = [int(((share >= corner) & (share <= np.add(corner, INSET))).all(axis=1).sum()) for corner in corners]
    top, left = corners[int(np.argmin(hidden))]
    small = ax.inset_axes((left, 1 - top - INSET, INSET, INSET), zorder=6)
    primitives.photo(small, backdrop, WASH)
    small.add_patch(
        Rectangle((window.left, window.top), window.width, window.height, fill=False, edgecolor=color, linewidth=1.4)
    )
    small.add_patch(Rectangle((0, 0), width, height, fill=False, edgecolor="white", linewidth=3, clip_on=False))


def centres_of_boxes(
    detection: dict[str, Tensor], min_score: float, size: tuple[int, int], most: int = MOST_PLACES
) -> list[tuple[float, float]]:
    """The centres (y, x) px, on the photo of ``size`` (h, w), of the ``most`` best of the detections that are drawn."""
    if "scores" not in detection:
        return []
    boxes = detection["boxes"][shown_detections(detection, min_score, most)]
    low, high = boxes.new_zeros(4), boxes.new_tensor([size[1], size[0]] * 2)
    inside = boxes.clamp(low, high)
    return [((y0 + y1) / 2, (x0 + x1) / 2) for x0, y0, x1, y1 in inside.tolist()]


def check_places(places: Sequence[tuple[float, float]], size: tuple[int, int]) -> None:
    """Raise DeformscopeError unless every place (y, x) is on a photo of ``size`` (h, w)."""
    for y, x in places:
        if not (0 <= y <= size[0] and 0 <= x <= size[1]):
            raise DeformscopeError(
                f"place (y, x) = ({y:g}, {x:g}): outside the photo, which is {size[0]} high and {size[1]} wide"
            )


def _full(field: OffsetField) -> float:
    """The modulation up to which a layer goes: 1, or the next of 2, 5, 10… (as 2·sigmoid, in BiRefNet)."""
    most = 0.0 if field.modulation is None else float(field.modulation.nan_to_num(0, 0, 0).max())
    if most <= MOST_OF_SIGMOID:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(step * power for step in (1, 2, 5, 10) if most <= step * power)


def _stack(fields: list[OffsetField], depth: int) -> list[OffsetField]:
    """The last field and those below it, lowest first."""
    if not 1 <= depth <= DEEPEST:
        raise DeformscopeError(f"depth={depth}: expected 1 to {DEEPEST}, the layers that are stacked")
    top = fields[-1]
    found = upstream({field.name: field for field in fields}, top.name, depth)
    if len(found) < depth:
        chain = " ← ".join(repr(field.name) for field in reversed(found))
        below = found[0].below
        why = (
            f"the layer below is {below!r}, which is not among the fields; give it too"
            if below
            else "nothing deformable is below it"
            if below is not None
            else "the layer below it is not known; set below=, as in OffsetField.from_tensor"
        )
        raise DeformscopeError(f"depth={depth}: {len(found)} of the layers given follow each other ({chain}); {why}")
    return found


def _color(number: int) -> str:
    return style.PLACES[number % len(style.PLACES)]

"""The part of a photo that a panel shows: what is small is looked at from near."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes

CLOSE = 0.4
"""A box is looked at from near where it is shorter, in both directions, than this share of the photo's sides."""
AROUND = 2.4
"""The box's sides around it in such a view, times their lengths."""
LEAST_PART = 0.2
"""No nearer than this part of the photo: of a smaller one nothing could be recognised."""


@dataclass(frozen=True)
class Window:
    """The part of a photo that a panel shows, of the photo's own shape; px."""

    top: float
    left: float
    height: float
    width: float

    @classmethod
    def around(
        cls,
        box: tuple[float, float, float, float] | None,
        size: tuple[int, int],
        close: float = CLOSE,
        least_part: float = LEAST_PART,
    ) -> Window:
        """The surroundings of a small box (xyxy px), or the whole photo of ``size`` (h, w)."""
        height, width = size
        if box is None:
            return cls(0, 0, height, width)
        x0, y0, x1, y1 = box
        share = max((x1 - x0) / width, (y1 - y0) / height)
        if share > close:
            return cls(0, 0, height, width)
        part = min(1.0, max(AROUND * share, least_part))
        h, w = part * height, part * width
        top = min(max((y0 + y1) / 2 - h / 2, 0), height - h)
        left = min(max((x0 + x1) / 2 - w / 2, 0), width - w)
        return cls(top, left, h, w)

    def apply(self, ax: Axes) -> None:
        """Let the axes show it."""
        ax.set(xlim=(self.left, self.left + self.width), ylim=(self.top + self.height, self.top))

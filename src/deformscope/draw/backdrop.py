"""The photo behind a figure's panels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..photo import Photo, read

MOST_PER_INCH = 110
"""Photo px per inch of panel; up to twice as many are left as they are."""


@dataclass(frozen=True)
class Backdrop:
    """A photo as figures need it: no more px than they can show, and its own size, in which all is drawn."""

    pixels: np.ndarray
    """RGB uint8."""
    size: tuple[int, int]
    """Height and width of the photo, px."""
    _made: dict[str, dict] = field(default_factory=lambda: {"within": {}, "washed": {}}, repr=False, compare=False)
    """Copies, so that all panels of all figures share one."""

    @classmethod
    def of(cls, photo: Photo | Backdrop) -> Backdrop:
        """Read a photo, with all its px."""
        if isinstance(photo, Backdrop):
            return photo
        array = read(photo)
        return cls(array, (array.shape[0], array.shape[1]))

    def within(self, inches: float) -> Backdrop:
        """No more px than a panel so wide can show: drawing goes by their number, and most would be skipped."""
        from PIL import Image

        factor = int(self.pixels.shape[1] // (inches * MOST_PER_INCH))
        if factor < 2:
            return self
        made = self._made["within"]
        if factor not in made:
            made[factor] = Backdrop(np.asarray(Image.fromarray(self.pixels).reduce(factor)), self.size)
        return made[factor]

    def washed(self, wash: float) -> np.ndarray:
        """The px washed towards white by ``wash`` (0..1), so that what lies on them can be seen."""
        made = self._made["washed"]
        if wash not in made:
            made[wash] = washed(self.pixels, wash)
        return made[wash]


def washed(pixels: np.ndarray, wash: float) -> np.ndarray:
    """RGB uint8 washed towards white by ``wash`` (0..1)."""
    if not wash:
        return pixels
    shades = (np.arange(256) * (1 - wash) + 255 * wash).astype(np.uint8)
    return shades[pixels]

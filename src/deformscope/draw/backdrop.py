"""The photo behind the panels of a figure."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..photo import Photo, read

MOST_PER_INCH = 110
"""Photo px per inch of a panel; up to twice as many are kept."""


@dataclass(frozen=True)
class Backdrop:
    """A photo for figures: with no more px than they can show, and with its own size, in whose px everything is
    drawn."""

    pixels: np.ndarray
    """RGB uint8."""
    size: tuple[int, int]
    """Height and width of the photo, px."""
    _made: dict[str, dict] = field(default_factory=lambda: {"within": {}, "washed": {}}, repr=False, compare=False)
    """Copies by width, which all panels of all figures share."""

    @classmethod
    def of(cls, photo: Photo | Backdrop) -> Backdrop:
        """Read a photo with all its px."""
        if isinstance(photo, Backdrop):
            return photo
        array = read(photo)
        return cls(array, (array.shape[0], array.shape[1]))

    def within(self, inches: float) -> Backdrop:
        """The photo with as many px as a panel of this width can show, since the time for drawing depends on them."""
        from PIL import Image

        factor = int(self.pixels.shape[1] // (inches * MOST_PER_INCH))
        if factor < 2:
            return self
        made = self._made["within"]
        if factor not in made:
            made[factor] = Backdrop(np.asarray(Image.fromarray(self.pixels).reduce(factor)), self.size)
        return made[factor]

    def washed(self, wash: float) -> np.ndarray:
        """The px blended with white by ``wash`` (0..1), so that things drawn on them can be seen."""
        made = self._made["washed"]
        if wash not in made:
            made[wash] = washed(self.pixels, wash)
        return made[wash]


def washed(pixels: np.ndarray, wash: float) -> np.ndarray:
    """RGB uint8 blended with white by ``wash`` (0..1)."""
    if not wash:
        return pixels
    shades = (np.arange(256) * (1 - wash) + 255 * wash).astype(np.uint8)
    return shades[pixels]

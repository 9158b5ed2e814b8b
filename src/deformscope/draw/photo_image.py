"""A photo on axes whose px are selected, not resampled, which takes a tenth of the time in figures with many panels."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.transforms import Affine2D


class PhotoImage(AxesImage):
    """An RGB uint8 image ``[h w 3]`` that fills ``size`` (h, w) data units from (0, 0), with y downwards."""

    def __init__(self, ax: Axes, pixels: np.ndarray, size: tuple[int, int], **settings: Any) -> None:
        extent = (0, size[1], size[0], 0)
        super().__init__(ax, extent=extent, origin="upper", interpolation="nearest", **settings)
        self.set_data(pixels)
        opaque = np.full((*pixels.shape[:2], 4), 255, dtype=np.uint8)
        opaque[..., :3] = pixels
        self._words = opaque.view(np.uint32)[..., 0]
        self._given = self.get_array()

    def make_image(self, renderer: Any, magnification: float = 1.0, unsampled: bool = False) -> Any:
        """The photo for the renderer, with the nearest px of the photo at each of its own."""
        to_px = self.get_transform()
        changed = self.get_array() is not self._given or self.get_alpha() is not None
        if unsampled or changed or not (to_px.is_affine and to_px.is_separable):
            return super().make_image(renderer, magnification, unsampled)
        left, right, bottom, top = self.get_extent()
        begin, end = to_px.transform([(left, top), (right, bottom)])
        window = self.axes.bbox
        low = np.floor(np.maximum(window.min, np.minimum(begin, end)) * magnification + 0.5)
        high = np.floor(np.minimum(window.max, np.maximum(begin, end)) * magnification + 0.5)
        if (high <= low).any():
            return None, 0, 0, None
        picked = []
        for axis in (0, 1):
            middles = (np.arange(low[axis], high[axis]) + 0.5) / magnification
            share = (middles - begin[axis]) / (end[axis] - begin[axis])
            count = self._words.shape[1 - axis]
            picked.append(np.clip((share * count).astype(int), 0, count - 1))
        columns, rows = picked
        shown = self._words[rows].take(columns, axis=1)
        return shown.view(np.uint8).reshape(*shown.shape, 4), low[0] / magnification, low[1] / magnification, Affine2D()

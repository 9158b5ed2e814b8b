"""Arrows of true length as a single path. (matplotlib's Quiver draws each one separately, and twice with a halo.)"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.path import Path
from matplotlib.patheffects import PathEffectRenderer
from matplotlib.quiver import Quiver
from matplotlib.transforms import IdentityTransform

AT_ONCE = 512
"""Arrows per path; the number of cells of the rasteriser is limited."""
LONGEST = 2.0**15
"""Longest arrow, px; longer ones would overflow in the rasteriser."""
CODES = np.array([Path.MOVETO, *[Path.LINETO] * 6, Path.CLOSEPOLY], dtype=Path.code_type)


class Arrows(Quiver):
    """A Quiver in one colour, with ``angles="xy"`` and ``scale=1`` in data units, whose halo lies below all arrows."""

    def draw(self, renderer: Any) -> None:
        """Draw all arrows as one or a few paths."""
        if not self.get_visible():
            return
        if self.get_array() is not None or len(np.asarray(self.get_facecolor())) != 1:
            super().draw(renderer)
            return
        outlines = self.outlines()
        gc = renderer.new_gc()
        if self.get_clip_on():
            gc.set_clip_rectangle(self.get_clip_box())
            path: Any = self.get_clip_path()
            gc.set_clip_path(path)
        gc.set_linewidth(0)
        color: Any = tuple(np.asarray(self.get_facecolor())[0])
        effects = self.get_path_effects()
        pen = PathEffectRenderer(effects, renderer) if effects else renderer
        renderer.open_group("arrows", self.get_gid())
        for start in range(0, len(outlines), AT_ONCE):
            part = outlines[start : start + AT_ONCE]
            pen.draw_path(gc, Path(part.reshape(-1, 2), np.tile(CODES, len(part))), IdentityTransform(), color)
        renderer.close_group("arrows")
        gc.restore()
        self.stale = False

    def outlines(self) -> Float[np.ndarray, "arrows 8 2"]:
        """The closed outlines, px of the figure, of the same shape as Quiver's. NaN and infinite arrows are left out.

        Arrows shorter than their head are scaled down, and those shorter than ``minlength`` are hexagons.
        """
        begin = np.column_stack([self.X, self.Y]).astype(float)
        known = np.isfinite(begin).all(axis=1) & np.isfinite(self.U) & np.isfinite(self.V)
        if self.Umask is not np.ma.nomask:
            known &= ~np.asarray(self.Umask)
        begin, step = begin[known], np.column_stack([self.U, self.V])[known]
        figure, axes = self.get_figure(root=True), self.axes
        assert figure is not None and axes is not None and self.width is not None
        to_px = axes.transData
        start = to_px.transform(begin)
        vector = to_px.transform(begin + step) - start
        pixels = np.hypot(*vector.T)
        turn = np.exp(1j * np.arctan2(vector[:, 1], vector[:, 0]))
        width = self.width * figure.dpi
        length = np.minimum(pixels, LONGEST)[:, None] / width
        back, barb, shaft = self.headaxislength, self.headlength, self.minshaft * self.headlength
        # Along the arrow and across it, in widths of the shaft, from the start along one side to the tip and back.
        along = length * [0, 1, 1, 1, 1, 1, 0] - [0, back, barb, 0, barb, back, 0]
        across = np.array([0.5, 0.5, 0.5 * self.headwidth, 0, -0.5 * self.headwidth, -0.5, -0.5])
        stub = np.array([0, shaft - back, shaft - barb, shaft, shaft - barb, shaft - back, 0])
        shape = np.where(length < shaft, length / shaft * (stub + 1j * across), along + 1j * across)
        hexagon = 0.5 * self.minlength * np.exp(1j * np.pi / 3 * np.arange(7))
        shape = np.where(length < self.minlength, hexagon, shape) * turn[:, None] * width
        closed = np.concatenate([shape, shape[:, :1]], axis=1) + (start[:, 0] + 1j * start[:, 1])[:, None]
        return np.stack([closed.real, closed.imag], axis=-1)

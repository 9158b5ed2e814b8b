"""d_f as a flow, by the colour wheel: how deformable convolutions align video frames.

EDVR, BasicVSR++ and their like align the features of neighbouring frames by deformable convolutions, whose d_f
estimates the optical flow and whose other offsets are its diversity (Chan et al., AAAI 2021). Hue is the direction,
saturation the length (Baker et al., IJCV 2011).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure

from ..backdrop import on_photo
from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.viewpoint import split
from ..photo import Photo
from . import primitives
from .panels import FieldsLike, FieldView, as_list
from .primitives import inches
from .sheet import sheet
from .style import FAINT, INK, own_settings

FULL = 0.99
"""Colours are full at this quantile of the lengths in all panels, rounded to a readable number."""
WHEEL_INCHES = 0.62


@own_settings()
def flow(
    fields: FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    frames: Sequence[str] = (),
    limit: float | None = None,
) -> Figure:
    """d_f as a flow: the photo, then a panel for each offset group, or for each of ``frames``; a row for each field.

    ``frames`` names the frames between which the groups are divided evenly, in their order: BasicVSR++ has 16 groups,
    eight for the previous frame and eight for the one before, ``frames=("t−1", "t−2")``. A panel then
    shows the mean over its frame's groups, and its caption the diversity: the rms distance of all offsets of the groups
    from it. Colours are full at ``limit`` photo px (default: chosen from the lengths; the wheel shows it). Groups are
    counted from 0.

    Raises DeformscopeError for groups that cannot be divided evenly, and for a field of several images.

    Example:
        >>> ds.draw.flow(field, "photo.jpg").savefig("flow.png")
    """
    backdrop, chosen = on_photo(as_list(fields), photo, fit)
    parts = [_panels(field, backdrop.size, frames) for field in chosen]
    lengths = np.concatenate([np.hypot(*flow.T).ravel() for row in parts for _, flow, _ in row])
    if limit is not None and not limit > 0:
        raise DeformscopeError(f"limit={limit}: expected a length above 0, photo px")
    finite = lengths[np.isfinite(lengths)]
    full = limit or primitives.nice(max(float(np.quantile(finite, FULL)), 1e-6) if finite.size else 1.0)
    most = max(len(row) for row in parts)
    columns = 1 + min(most, 3)
    lines = [-(-len(row) // (columns - 1)) for row in parts]
    result = sheet(sum(lines), columns, backdrop.size)
    top = 0
    for field, row, count in zip(chosen, parts, lines, strict=True):
        view = FieldView.of(field, backdrop.size)
        for line in range(count):
            axes = result.panels[top + line]
            if line:
                axes[0].set_axis_off()
            else:
                primitives.photo(axes[0], backdrop.within(result.inches))
                result.caption(axes[0], primitives.escaped(view.caption()), "reference frame")
                _wheel(axes[0], full)
            shown = row[line * (columns - 1) : (line + 1) * (columns - 1)]
            for ax, (label, vectors, text) in zip(axes[1:], shown, strict=False):
                _picture(ax, view, vectors, full, backdrop.size)
                result.caption(ax, label, text)
            for ax in axes[1 + len(shown) :]:
                ax.set_axis_off()
        top += count
    return result.finished()


def colours(vectors: Float[np.ndarray, "h w 2"], full: float) -> Float[np.ndarray, "h w 3"]:
    """The wheel's colours of vectors (y, x): red to the right, then through yellow downwards; white where there is no
    motion, grey for NaN."""
    y, x = vectors[..., 0], vectors[..., 1]
    hue = (np.arctan2(y, x) / (2 * np.pi)) % 1.0
    strength = np.clip(np.hypot(y, x) / full, 0, 1)
    known = np.isfinite(y) & np.isfinite(x)
    parts = [np.where(known, hue, 0.0), np.where(known, strength, 0.0), np.where(known, 1.0, 0.5)]
    return hsv_to_rgb(np.stack(parts, axis=-1))


def _panels(
    field: OffsetField, size: tuple[int, int], frames: Sequence[str]
) -> list[tuple[str, Float[np.ndarray, "h w 2"], str]]:
    """Label, flow in photo px and details of each panel."""
    n, groups = field.offset.shape[:2]
    if n != 1:
        raise DeformscopeError(f"field {field.name!r} of {n} images: expected one; take field.select(i)")
    if frames and groups % len(frames):
        raise DeformscopeError(
            f"frames={list(frames)}: the {groups} offset groups of {field.name!r} cannot be divided evenly between "
            f"{len(frames)} frames"
        )
    per_cell = np.array(field.pixels_per_cell())
    each = groups // len(frames) if frames else 1
    found = []
    for number in range(len(frames) or groups):
        own = slice(number * each, (number + 1) * each)
        mean = split(field.offset[:, own])[0].mean(dim=1, keepdim=True)  # [1 1 1 h w 2]
        rest = ((field.offset[:, own] - mean).numpy() * per_cell) ** 2
        vectors = mean[0, 0, 0].numpy() * per_cell
        which = f"groups {own.start} to {own.stop - 1}" if each > 1 else f"group {own.start}"
        label = " · ".join(
            [
                *([primitives.escaped(frames[number])] if frames else []),
                "$d_f$" + (f" of {which}" if groups > 1 else ""),
            ]
        )
        with np.errstate(invalid="ignore"):
            middle, apart = float(np.hypot(*vectors.mean(axis=(0, 1)))), float(np.sqrt(rest.sum(axis=-1).mean()))
            length = float(np.hypot(*vectors.T).mean())
        what = f"mean length {length:.2g} px, of the mean {middle:.2g} px · diversity {apart:.2g} px"
        found.append((label, vectors, what))
    return found


def _picture(ax: Axes, view: FieldView, vectors: np.ndarray, full: float, size: tuple[int, int]) -> None:
    top, bottom, left, right = view.corners
    ax.imshow(colours(vectors, full), extent=(left, right, bottom, top), interpolation="nearest", aspect="equal")
    ax.set(xlim=(0, size[1]), ylim=(size[0], 0))
    ax.set_axis_off()


def _wheel(ax: Axes, full: float) -> None:
    """The wheel in the corner of a panel, with the length at its rim."""
    side = np.linspace(-1, 1, 129)
    vectors = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1)
    inside = np.hypot(*vectors.T).T <= 1
    rgba = np.concatenate([colours(vectors, 1.0), inside[..., None].astype(float)], axis=-1)
    tall, wide = inches(ax)
    share = WHEEL_INCHES / wide, WHEEL_INCHES / tall
    wheel = ax.inset_axes((1 - 1.08 * share[0], 0.08 * share[1], share[0], share[1]))
    wheel.imshow(rgba, extent=(-1, 1, 1, -1), interpolation="bilinear", zorder=2)
    wheel.plot(np.cos(side * np.pi), np.sin(side * np.pi), color=INK, lw=0.8, zorder=3)
    wheel.plot(0, 0, "+", color=FAINT, ms=5, mew=0.8, zorder=3)
    wheel.text(0, 0.62, f"{full:g} px", fontsize=6, ha="center", va="center", color=INK, zorder=4, parse_math=False)
    wheel.set(xlim=(-1.06, 1.06), ylim=(1.06, -1.06))
    wheel.set_axis_off()

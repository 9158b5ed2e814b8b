"""Masks made of boxes without any training: filled boxes, inscribed ellipses, and GrabCut.

They are the bars for masks that are learned from boxes alone: a box that is filled knows nothing but the box, and
GrabCut (Rother et al., SIGGRAPH 2004) knows the photo's colours, but no other photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from ..errors import DeformscopeError

Array = np.ndarray
Box = Sequence[float]
"""x0, y0, x1, y1 in photo px."""

ITERATIONS = 3
MARGIN = 0.5
"""GrabCut sees this share of the box's sides around it."""
LARGEST = 128
"""Longer side to which a larger box is reduced, px. On 50 objects of Pascal VOC more pixels gained no IoU."""
LEAST = 0.25
"""Share of the box below which GrabCut has failed, and the ellipse is taken. On the same objects this was never worse
than what GrabCut had found."""


def filled(box: Box, size: tuple[int, int]) -> Bool[Array, "h w"]:
    """The box itself, as a mask of a photo of ``size`` (h, w)."""
    y, x = _centres(size)
    return (y >= box[1]) & (y < box[3]) & (x >= box[0]) & (x < box[2])


def ellipse(box: Box, size: tuple[int, int]) -> Bool[Array, "h w"]:
    """The ellipse that the box circumscribes."""
    y, x = _centres(size)
    across, down = max((box[2] - box[0]) / 2, 1e-6), max((box[3] - box[1]) / 2, 1e-6)
    return ((x - (box[0] + box[2]) / 2) / across) ** 2 + ((y - (box[1] + box[3]) / 2) / down) ** 2 <= 1


def grab_cut(photo: UInt8[Array, "h w 3"], box: Box, seed: Bool[Array, "h w"] | None = None) -> Bool[Array, "h w"]:
    """GrabCut in the box: pixels outside are background for certain, inside those of ``seed`` (or all) are probably
    the object.

    Where it finds less than a quarter of the box, the result is the ellipse, or ``seed``. Needs OpenCV, from the extra
    ``masks``; raises DeformscopeError without it.

    >>> photo = np.zeros((60, 80, 3), np.uint8)
    >>> photo[20:40, 30:60] = 255
    >>> int(grab_cut(photo, (25, 15, 65, 45)).sum())
    600
    """
    cv2 = opencv()
    size = photo.shape[:2]
    within = filled(box, size)
    otherwise = ellipse(box, size) if seed is None else seed & within
    top, left, bottom, right = _window(box, size)
    if bottom - top < 2 or right - left < 2 or not within.any():
        return otherwise
    scale = min(1.0, LARGEST / max(box[2] - box[0], box[3] - box[1]))
    to = max(2, round((right - left) * scale)), max(2, round((bottom - top) * scale))
    state = np.where(within, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if seed is not None:
        state[within & ~seed] = cv2.GC_PR_BGD
    shown = cv2.resize(np.ascontiguousarray(photo[top:bottom, left:right]), to, interpolation=cv2.INTER_AREA)
    state = cv2.resize(state[top:bottom, left:right], to, interpolation=cv2.INTER_NEAREST)
    if not (state % 2 == 0).any():  # the box fills the photo: its border is the only background there can be
        state[[0, -1]], state[:, [0, -1]] = cv2.GC_BGD, cv2.GC_BGD
    if not (state % 2 == 1).any():
        return otherwise
    cv2.setRNGSeed(0)  # its mixtures begin at random
    try:
        cv2.grabCut(shown, state, None, np.zeros((1, 65)), np.zeros((1, 65)), ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels for its mixtures
        return otherwise
    found = np.zeros(size, dtype=bool)
    back = cv2.resize((state % 2).astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
    found[top:bottom, left:right] = back >= 0.5
    found &= within
    return found if found.sum() >= LEAST * within.sum() else otherwise


def refined(
    photo: UInt8[Array, "h w 3"], boxes: Float[Array, "d 4"], masks: Bool[Array, "d h w"]
) -> Bool[Array, "d h w"]:
    """Masks of a detector refined at test time: :func:`grab_cut` in each box, seeded by its mask.

    Example:
        >>> photo = np.zeros((40, 50, 3), np.uint8)
        >>> photo[10:30, 15:40] = 255
        >>> seed = np.zeros((1, 40, 50), bool)
        >>> seed[0, 14:26, 20:35] = True
        >>> refined(photo, np.array([[10.0, 5, 45, 35]]), seed).shape
        (1, 40, 50)
    """
    found = [grab_cut(photo, box, mask) for box, mask in zip(boxes.tolist(), masks, strict=True)]
    return np.array(found, dtype=bool).reshape(masks.shape)


def opencv() -> Any:
    """OpenCV. Raises DeformscopeError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise DeformscopeError(
            "GrabCut needs OpenCV; run: pip install 'deformscope[masks]', or leave GrabCut out"
        ) from None
    return cv2


def _centres(size: tuple[int, int]) -> tuple[Array, Array]:
    return np.arange(size[0])[:, None] + 0.5, np.arange(size[1])[None] + 0.5


def _window(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what GrabCut sees."""
    across, down = MARGIN * (box[2] - box[0]) + 2, MARGIN * (box[3] - box[1]) + 2
    top, left = max(0, int(box[1] - down)), max(0, int(box[0] - across))
    return top, left, min(size[0], int(box[3] + down) + 1), min(size[1], int(box[2] + across) + 1)

"""What is chosen when a detector is built or loaded, checked once for all of them; nothing here needs torch."""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import DeformscopeError

OffsetMode = Literal["none", "feature", "kernel", "full"]
"""The part of its offsets that a deformable convolution uses, the rows of Table 1 of Zhang et al. (ICPRAM 2021):
``none``, no offsets; ``feature``, only d_f, the mean over the kernel; ``kernel``, only d_k, the rest; ``full``."""
OFFSET_MODES: tuple[OffsetMode, ...] = get_args(OffsetMode)
Weights = Literal["plain", "ema"]
"""Of a file with two sets of weights: ``plain``, the weights under the usual keys (of a student and its teacher, the
student's), or ``ema``, their average."""
LONGEST_SIDE = 1 << 14
"""Longest side, px; larger ones in a file would exhaust the memory."""


def checked_offset_mode(offset_mode: str) -> OffsetMode:
    """Return ``offset_mode``. Raises DeformscopeError for an unknown one."""
    if offset_mode not in OFFSET_MODES:
        raise DeformscopeError(f"offset_mode={offset_mode!r}: expected one of {', '.join(OFFSET_MODES)}")
    return offset_mode


def chosen_sides(
    shorter_side: int | None, longer_side: int | None, otherwise: tuple[int, int] = (0, 0)
) -> tuple[int, int]:
    """The sides to which photos are resized, ``otherwise`` where not given. Raises DeformscopeError for invalid
    ones."""
    shorter = otherwise[0] if shorter_side is None else shorter_side
    longer = otherwise[1] if longer_side is None else longer_side
    if not 1 <= shorter <= longer <= LONGEST_SIDE:
        raise DeformscopeError(
            f"shorter_side={shorter}, longer_side={longer}: expected 1 ≤ shorter_side ≤ longer_side ≤ {LONGEST_SIDE}"
        )
    return shorter, longer

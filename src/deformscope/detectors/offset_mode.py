"""The part of its offsets that a deformable convolution uses: the rows of Table 1 of Zhang et al. (ICPRAM 2021)."""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import DeformscopeError

OffsetMode = Literal["none", "feature", "kernel", "full"]
"""``none``: no offsets; ``feature``: only d_f, the mean over the kernel; ``kernel``: only d_k, the rest; ``full``:
both."""
OFFSET_MODES: tuple[OffsetMode, ...] = get_args(OffsetMode)


def checked_offset_mode(offset_mode: str) -> OffsetMode:
    """Return ``offset_mode``. Raises DeformscopeError for an unknown one."""
    if offset_mode not in OFFSET_MODES:
        raise DeformscopeError(f"offset_mode={offset_mode!r}: expected one of {', '.join(OFFSET_MODES)}")
    return offset_mode

"""Which part of its offsets a deformable convolution uses: the rows of Zhang et al. (ICPRAM 2021), Table 1."""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import DeformscopeError

OffsetMode = Literal["none", "feature", "kernel", "full"]
"""``none``: zero in the place of every offset; ``feature``: only d_f, their mean over the kernel; ``kernel``: only d_k,
the rest; ``full``: both."""
OFFSET_MODES: tuple[OffsetMode, ...] = get_args(OffsetMode)


def checked_offset_mode(offset_mode: str) -> OffsetMode:
    """``offset_mode`` itself; DeformscopeError for another word than those of :data:`OffsetMode`."""
    if offset_mode not in OFFSET_MODES:
        raise DeformscopeError(f"offset_mode={offset_mode!r}: expected one of {', '.join(OFFSET_MODES)}")
    return offset_mode

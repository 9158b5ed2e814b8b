"""Values of an annotation file from any exporter: numbers, ids, flags."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any

Identifier = int | float | str
"""The id of a photo, object or category: an integer in COCO's files, text in many others."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = _short.maxdict = 8
_short.maxlong = 30


def shown(value: Any) -> str:
    """A value as one short line, for a message."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= 200 else _short.repr(value)


def number(value: Any) -> float | None:
    """A finite number, or a text of one (``"12.5"``); None for others, including true and false."""
    if isinstance(value, str):
        value = float(value) if len(value) < 100 and _NUMBER.fullmatch(value.strip()) else None
    if type(value) not in (int, float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """A positive integer, also as text or as 640.0; None for others."""
    found = number(value)
    return int(found) if found is not None and found >= 1 and found == int(found) else None


def flag(value: Any) -> bool | None:
    """0 or 1, also as text or as true and false; null is 0. None for others."""
    if value is None or isinstance(value, bool):
        return bool(value)
    found = number(value)
    return bool(found) if found in (0, 1) else None


def text(value: Any) -> str | None:
    """A text that can be printed and written to files; None for others, including the empty one."""
    if not isinstance(value, str) or not value:
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # unpaired surrogate
        return None
    return value


def identifier(value: Any) -> Identifier | None:
    """The id, 7.0 as 7; None for values that identify nothing (null, true, NaN, lists)."""
    if isinstance(value, str):
        return text(value)
    if type(value) is float:
        return None if not math.isfinite(value) else int(value) if value == int(value) else value
    return value if type(value) is int else None


def rank(value: Identifier) -> tuple[int, float, str]:
    """The key for sorting ids: numbers, also as text, before other texts."""
    if isinstance(value, str):
        return (0, int(value), value) if _WHOLE.fullmatch(value) else (1, 0, value)
    return (0, value, "")


class Index:
    """Index by id. An unknown id is looked up as text, if only one has that text."""

    def __init__(self, ids: Sequence[Identifier | None]) -> None:
        self._places: dict[Identifier, int] = {}
        self._texts: dict[str, int | None] = {}
        for place, one in enumerate(ids):
            if one is None:
                continue
            self._places.setdefault(one, place)
            written = str(one)
            self._texts[written] = None if written in self._texts else place

    def find(self, value: Any) -> int | None:
        """The index of an id, or None."""
        one = identifier(value)
        if one is None:
            return None
        place = self._places.get(one)
        return self._texts.get(str(one)) if place is None else place

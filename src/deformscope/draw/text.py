"""Lines of words of a known width: measured in the figures' own font, and wrapped where a panel ends.

In a text, ``$d_f$`` stands for the symbol with its index; nothing else is a formula.
"""

from __future__ import annotations

import re
from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font

FAMILY = "DejaVu Sans"
SYMBOL = re.compile(r"\$([a-zA-Z])_([a-zA-Z])\$")
NBSP = "\N{NO-BREAK SPACE}"
SHRUNKEN, LOWERED = 0.7, 0.22
"""Size of an index and how far it hangs down, in sizes of its symbol."""
ASCENT, LINE = 0.77, 1.33
"""Height of capital letters with their accents, and from line to line, in sizes of the type."""


def escaped(text: str) -> str:
    """Text as it stands: a dollar sign in a file's or a class's name begins no formula."""
    return text.replace("$", r"\$")


def width(text: str, points: float) -> float:
    """How wide a line is, inches."""
    return sum(_advance(part, italic) * size for part, italic, size, _ in _parts(text)) * points / 72


def wrapped(text: str, points: float, inches: float) -> list[str]:
    """The text in lines no wider than ``inches``; words that are wider are broken."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if width(longer, points) <= inches:
            line = longer
            continue
        if line:
            lines.append(line)
        while width(word, points) > inches and len(word) > 1:
            fits = next((n for n in range(len(word) - 1, 1, -1) if width(word[:n], points) <= inches), 1)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def write_line(ax: Axes, text: str, points: float, color: str, down: float) -> None:
    """Write one line below the axes' lower left corner, its upper edge ``down`` inches from it."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_position()
    wide, tall = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
    across = 0.0
    for part, italic, size, lower in _parts(text):
        ax.text(
            across / wide,
            -(down + (ASCENT + lower) * points / 72) / tall,
            re.sub("^ | $", NBSP, part),  # SVG's viewers drop spaces at the ends
            transform=ax.transAxes,
            va="baseline",
            ha="left",
            fontfamily=FAMILY,
            fontsize=points * size,
            fontstyle="italic" if italic else "normal",
            color=color,
            clip_on=False,
            parse_math=False,
        )
        across += _advance(part, italic) * size * points / 72


def _parts(text: str) -> list[tuple[str, bool, float, float]]:
    """What is written in one piece: text, whether in italics, relative size, how far it is lowered."""
    parts: list[tuple[str, bool, float, float]] = []
    begin = 0
    for symbol in SYMBOL.finditer(text):
        parts += [
            (text[begin : symbol.start()], False, 1.0, 0.0),
            (symbol[1], True, 1.0, 0.0),
            (symbol[2], True, SHRUNKEN, LOWERED),
        ]
        begin = symbol.end()
    parts.append((text[begin:], False, 1.0, 0.0))
    return [(part.replace(r"\$", "$"), italic, size, lower) for part, italic, size, lower in parts if part]


def _advance(text: str, italic: bool) -> float:
    """Width in sizes of the type."""
    return sum(_letter(letter, italic) for letter in text)


@lru_cache(4096)
def _letter(letter: str, italic: bool) -> float:
    font = _font(italic)
    font.set_size(100, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 100


@lru_cache(2)
def _font(italic: bool) -> FT2Font:
    return get_font(findfont(FontProperties(family=FAMILY, style="italic" if italic else "normal")))

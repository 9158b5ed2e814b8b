"""Text of known width, measured in the font of the figures, and wrapped at the width of a panel.

``$d_f$`` is the symbol with its index; there are no other formulas.
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
"""Size of an index and its shift downwards, relative to the size of its symbol."""
ASCENT, LINE = 0.77, 1.33
"""Height of capital letters with accents, and distance of lines, relative to the font size."""


def escaped(text: str) -> str:
    """Text without formulas: a dollar sign in the name of a file or class is kept."""
    return text.replace("$", r"\$")


def width(text: str, points: float) -> float:
    """Width of a line, inches."""
    return sum(_advance(part, italic) * size for part, italic, size, _ in _parts(text)) * points / 72


def wrapped(text: str, points: float, inches: float) -> list[str]:
    """Wrap the text to lines of at most ``inches``; longer words are broken."""
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
    """Write one line below the lower left corner of the axes, with its upper edge at ``down`` inches."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_position()
    wide, tall = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
    across = 0.0
    for part, italic, size, lower in _parts(text):
        ax.text(
            across / wide,
            -(down + (ASCENT + lower) * points / 72) / tall,
            re.sub("^ | $", NBSP, part),  # SVG viewers drop spaces at the ends
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
    """A piece of text: the text, whether it is italic, its relative size, and its shift downwards."""
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
    """Width relative to the font size."""
    return sum(_letter(letter, italic) for letter in text)


@lru_cache(4096)
def _letter(letter: str, italic: bool) -> float:
    font = _font(italic)
    font.set_size(100, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 100


@lru_cache(2)
def _font(italic: bool) -> FT2Font:
    return get_font(findfont(FontProperties(family=FAMILY, style="italic" if italic else "normal")))

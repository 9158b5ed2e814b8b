"""Text of known width, measured in the font of the figures, and wrapped at the width of a panel.

``$d_f$`` is the symbol with its index; there are no other formulas.
"""

from __future__ import annotations

import re
from functools import lru_cache

from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

FAMILY = "DejaVu Sans"
OTHERS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Microsoft YaHei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Malgun Gothic",
    "Nirmala UI",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Arial Unicode MS",
    "STIXGeneral",
)
"""Fonts for letters that matplotlib's own lacks, where they are installed."""
SYMBOL = re.compile(r"\$([a-zA-Z])_([a-zA-Z])\$")
NBSP = "\N{NO-BREAK SPACE}"
SHRUNKEN, LOWERED = 0.7, 0.22
"""Size of an index and its shift downwards, relative to the size of its symbol."""
HINTING = 1.04
"""Largest growth of a line by hinting, which depends on the resolution."""
ASCENT, LINE = 0.77, 1.33
"""Height of capital letters with accents, and distance of lines, relative to the font size."""


def escaped(text: str) -> str:
    """Text without formulas: a dollar sign in the name of a file or class is kept."""
    return text.replace("$", r"\$")


def drawable(text: str, instead: str = "") -> str:
    """The text on one line, where the figures' fonts have all its letters; otherwise ``instead``.

    Besides matplotlib's own font, those of :data:`OTHERS` that are installed count.
    """
    line = " ".join(text.encode("utf-8", "replace").decode().split())
    return line if families(line) else instead


def legible(text: str) -> str:
    """The text with a question mark for each letter that no font has."""
    if families(text):
        return text
    return "".join(letter if families(letter) else "?" for letter in text)


@lru_cache(256)
def families(text: str) -> tuple[str, ...]:
    """The fonts for a text, in matplotlib's order of fallback; empty where none of them has some letter."""
    missing = {letter for letter in text if letter != " " and not _font(False).get_char_index(ord(letter))}
    if not missing:
        return (FAMILY,)
    installed = {entry.name: entry.fname for entry in fontManager.ttflist}
    others = {name: get_font(installed[name]) for name in OTHERS if name in installed}
    known = all(any(font.get_char_index(ord(letter)) for font in others.values()) for letter in missing)
    return (FAMILY, *others) if known else ()


def width(text: str, points: float) -> float:
    """Largest width of a line at any resolution, inches."""
    return HINTING * sum(_advance(part, italic) * size for part, italic, size, _ in _parts(text)) * points / 72


def wrapped(text: str, points: float, inches: float) -> list[str]:
    """Wrap the text to lines of at most ``inches``; longer words are broken, names between their parts."""
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
            parting = max(word.rfind(sign, 0, fits) for sign in "./_") + 1  # of a name
            fits = parting if parting > fits / 3 else fits
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line] if line else lines


def write_line(ax: Axes, text: str, points: float, color: str, down: float) -> None:
    """Write one line below the lower left corner of the axes, with its upper edge at ``down`` inches."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    tall = ax.get_position().height * figure.get_figheight()
    before: Text | None = None
    for part, italic, size, lower in _parts(legible(text)):
        # Each part begins where the previous one ends, which depends on the resolution.
        before = ax.annotate(
            re.sub("^ | $", NBSP, part),  # SVG viewers drop spaces at the ends
            (0.0 if before is None else 1.0, -(down + (ASCENT + lower) * points / 72) / tall),
            xycoords=ax.transAxes if before is None else (before, ax.transAxes),
            va="baseline",
            ha="left",
            fontfamily=list(families(part)) or FAMILY,
            fontsize=points * size,
            fontstyle="italic" if italic else "normal",
            color=color,
            annotation_clip=False,
            parse_math=False,
        )


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
    if not font.get_char_index(ord(letter)):
        return 1.0  # letters of other scripts are as wide as their type is high
    font.set_size(100, 72)
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / 100


@lru_cache(2)
def _font(italic: bool) -> FT2Font:
    return get_font(findfont(FontProperties(family=FAMILY, style="italic" if italic else "normal")))

"""Save figures, whole or not at all, with the same bytes for the same figure."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image

from ..errors import DeformscopeError
from ..files import whole_file
from .own_settings import own_settings

FORMATS = ("png", "svg", "pdf")
UP = 2
"""PNG's filter: the difference to the byte above."""


@own_settings()
def save(figure: Figure, path: Path | str, dpi: int = 150) -> Path:
    """Save a figure as PNG, SVG or PDF, by its extension; the file appears whole or not at all.

    The same figure gives the same bytes: no date, fixed ids. Raises DeformscopeError for other extensions, and if the
    file cannot be written.

    Example:
        >>> ds.draw.save(ds.draw.figure2(field, "photo.jpg"), "figure2.svg").name
        'figure2.svg'
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        raise DeformscopeError(f"path={str(path)!r}: expected a name ending in one of .{', .'.join(FORMATS)}")
    with whole_file(path) as beside:
        if kind == "png":
            _write_png(figure, beside, dpi)
        else:
            figure.savefig(beside, format=kind, dpi=dpi, metadata={"Date" if kind == "svg" else "CreationDate": None})
    return path


def _write_png(figure: Figure, path: Path, dpi: int) -> None:
    raw = io.BytesIO()
    figure.savefig(raw, format="rgba", dpi=dpi)
    size = _size(raw.tell() // 4, figure.get_figwidth() * dpi, figure.get_figheight() * dpi)
    image = Image.frombuffer("RGBA", size, raw.getvalue(), "raw", "RGBA", 0, 1).convert("RGB")
    path.write_bytes(png(np.asarray(image), dpi))


def _size(count: int, width: float, height: float) -> tuple[int, int]:
    """Width and height of ``count`` pixels, which matplotlib may round up or down: a figure of 3 · 3.3 inches has 990
    columns at 100 dots per inch, though the product is 989.99…"""
    near = sorted(
        {int(width), round(width), math.ceil(width)}, key=lambda wide: (count % wide != 0, abs(count / wide - height))
    )
    return near[0], count // near[0]


def png(pixels: UInt8[np.ndarray, "h w 3"], dpi: float) -> bytes:
    """RGB as a PNG file. (Pillow tries five filters per row, which takes most of its time and saves 2 % of the
    bytes.)"""
    height, width, _ = pixels.shape
    lines = pixels.reshape(height, 3 * width)
    rows = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 0] = UP
    rows[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=rows[1:, 1:])
    per_metre = round(dpi / 0.0254)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)),
        (b"tEXt", b"Software\0deformscope"),
        (b"IDAT", zlib.compress(rows.data, 1)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )

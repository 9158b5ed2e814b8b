"""The explorer's page inside a notebook: shown in an iframe of its own, and saved as a file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from ..analysis import Analysis
from ..attribution.explanation import Explanation
from ..backdrop import fields_on_photo
from ..errors import DeformscopeError
from ..fields.field import OffsetField
from ..fields.fields import Fields
from ..fields.segments import Segments
from ..files import write_text
from ..photo import Photo
from .document import page

FieldsLike: TypeAlias = OffsetField | Sequence[OffsetField] | Mapping[str, OffsetField]


@dataclass(frozen=True)
class Exploration:
    """A page in the making: a notebook shows it, :meth:`save` writes it.

    Example:
        >>> exploration = ds.explore(fields, "photo.jpg", height=600)     # the last line of a notebook's cell shows it
        >>> exploration.text.startswith("<!doctype html>")
        True
    """

    text: str
    """The page's HTML."""
    height: int = 720

    def save(self, path: Path | str) -> Path:
        """Write the page to one HTML file, which appears whole or not at all; returns its path."""
        return write_text(path, self.text)

    def _repr_html_(self) -> str:
        # A sandbox without allow-same-origin: the page can read nothing of the notebook around it.
        return (
            '<iframe sandbox="allow-scripts allow-downloads" title="deformscope explorer" '
            f'style="width:100%;height:{int(self.height)}px;border:0;border-radius:8px" '
            f'srcdoc="{html.escape(self.text)}"></iframe>'
        )

    def __repr__(self) -> str:
        return f"Exploration({len(self.text) / 1e6:.1f} MB; .save(path) writes it)"


def explore(
    source: Analysis | Sequence[Analysis] | FieldsLike,
    photo: Photo | None = None,
    *,
    fit: str | None = None,
    titles: Sequence[str] = (),
    detection: Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] = (),
    segments: Sequence[Mapping[str, Segments]] | None = None,
    explanations: Sequence[Mapping[int, Explanation]] | None = None,
    height: int = 720,
) -> Exploration:
    """Explore fields by hand: displays inline in a notebook, ``.save("page.html")`` writes one self-contained file.

    ``source`` is an Analysis, several of them, or fields of one image: an OffsetField, a list or what ``capture`` gave,
    with their ``photo`` (default: the network's input as recorded) and, where the input was made of the photo by
    another step than a plain resize, ``fit`` as in :meth:`deformscope.Placement.fitted`. ``detection`` (torchvision's
    keys) and ``class_names`` go with fields; an Analysis has its own. ``segments`` and ``explanations`` are those of
    :func:`deformscope.explorer.page`. ``height`` of the notebook's frame is in px.

    Example:
        >>> ds.explore(fields, "photo.jpg").save("page.html").name
        'page.html'
    """
    several = [source] if isinstance(source, Analysis) else source
    if isinstance(several, Sequence) and several and all(isinstance(one, Analysis) for one in several):
        if photo is not None or fit is not None:
            raise DeformscopeError("photo, fit: an Analysis has its own photo; give them with fields alone")
        analyses: Sequence[Analysis] = several  # type: ignore[assignment]
    else:
        backdrop, fields = fields_on_photo(_fields(source), photo, fit)
        analyses = [Analysis(backdrop.whole(), fields, dict(detection or {}), tuple(class_names))]
        titles = titles or [_name(photo)]
    return Exploration(page(analyses, titles, segments=segments, explanations=explanations), height)


def _fields(source: object) -> Fields:
    attention = source.attention if isinstance(source, Fields) else {}
    if isinstance(source, OffsetField):
        source = [source]
    several: Any = list(source.values()) if isinstance(source, Mapping) else source
    of_fields = isinstance(several, Sequence) and all(isinstance(one, OffsetField) for one in several)
    if not of_fields:
        raise DeformscopeError(
            f"source of type {type(source).__name__}: expected an Analysis, an OffsetField, a list of them or the "
            "captured fields"
        )
    fields = Fields(attention=attention)
    for one in several:
        fields.add(one if one.name else replace(one, name="deformable convolution"))
    return fields


def _name(photo: Photo | None) -> str:
    return Path(photo).name if isinstance(photo, (str, Path)) else "photo" if photo is not None else "network's input"

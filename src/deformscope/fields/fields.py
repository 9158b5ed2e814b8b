"""Fields by the names of their layers, in the order of the calls."""

from __future__ import annotations

import difflib
import fnmatch
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ..errors import NoDeformableCall
from .attention import AttentionField
from .field import OffsetField, kernel_text, stride_text


class Fields(Mapping[str, OffsetField]):
    """The captured fields by module name, in the order of the calls; the second call of a module is ``name#2``.

    Example:
        >>> list(fields)[:2]
        ['heads.stride8.before.0', 'heads.stride8.deform']
        >>> fields.matching(["*stride16.deform"])["heads.stride16.deform"].reduction
        (16.0, 16.0)
    """

    def __init__(
        self,
        fields: Mapping[str, OffsetField] | None = None,
        attention: Mapping[str, AttentionField] | None = None,
    ) -> None:
        self._fields: dict[str, OffsetField] = dict(fields or {})
        self.attention: dict[str, AttentionField] = dict(attention or {})

    def __getitem__(self, name: str) -> OffsetField:
        try:
            return self._fields[name]
        except KeyError:
            near = _nearest(name, (*self, *self.attention))
            attention = f"; attention: {', '.join(map(repr, self.attention))}" if self.attention else ""
            captured = f"captured: {', '.join(map(repr, self._fields)) or 'none'}{attention}"
            known = f"nearest: {', '.join(map(repr, near))}" if near else captured
            raise NoDeformableCall(f"no deformable call named {name!r}; {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return "\n".join(["Fields:", *(f"  {field!r}" for field in (*self.values(), *self.attention.values()))])

    def _repr_html_(self) -> str:
        headings = (
            "layer",
            "images",
            "kernel",
            "map",
            "stride",
            "groups",
            "modulated",
            "offsets made by",
        )
        rows = ["".join(f"<th>{heading}</th>" for heading in headings)]
        rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(field)) for field in self.values()]
        attention = "".join(f"<p>{html.escape(repr(field))}</p>" for field in self.attention.values())
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>{attention}"

    def matching(self, patterns: Sequence[str]) -> Fields:
        """The fields whose names match any of the shell patterns (``*layer3*``), or contain one as a dotted part; of
        attention too."""
        if not patterns:
            return self
        names: set[str] = set()
        for pattern in patterns:
            found = {
                name
                for name in (*self, *self.attention)
                if fnmatch.fnmatchcase(name, pattern) or f".{pattern}." in f".{name}."
            }
            if not found:
                self[pattern]  # raises, with the names there are
            names |= found
        return Fields(
            {name: field for name, field in self.items() if name in names},
            {name: field for name, field in self.attention.items() if name in names},
        )

    def select(self, image: int) -> Fields:
        """The fields of one image of the batch."""
        return Fields(
            {name: field.select(image) for name, field in self.items()},
            {name: field.select(image) for name, field in self.attention.items()},
        )

    def to(self, device: str) -> Fields:
        """The fields with their tensors on another device."""
        return Fields(
            {name: field.to(device) for name, field in self.items()},
            {name: field.to(device) for name, field in self.attention.items()},
        )

    def forget_images(self) -> None:
        """Drop the network's inputs, which the next batch replaces."""
        self._fields = {name: replace(field, image=None) for name, field in self._fields.items()}
        self.attention = {name: replace(field, image=None) for name, field in self.attention.items()}

    def add(self, field: OffsetField) -> None:
        """Add ``field`` under its name, or ``name#2`` and so on if that is taken."""
        unique = _free(field.name, self._fields)
        self._fields[unique] = field if unique == field.name else replace(field, name=unique)

    def add_attention(self, field: AttentionField) -> None:
        """Keep a call of deformable attention under its name, or ``name#2`` and so on where that is taken."""
        unique = _free(field.name, self.attention)
        self.attention[unique] = field if unique == field.name else replace(field, name=unique)


def _cells(field: OffsetField) -> list[str]:
    """A field's row of the table for notebooks."""
    n, g, _, h, w, _ = field.offset.shape
    return [
        field.name,
        str(n),
        kernel_text(field),
        f"{h}×{w}",
        stride_text(field),
        str(g),
        "no" if field.modulation is None else "yes",
        "" if field.source is None else ", ".join(field.source.convolutions),
    ]


def _nearest(name: str, names: Sequence[str], most: int = 3) -> list[str]:
    """Of ``names`` those most like a mistyped name, part of one, or pattern; best first."""
    wanted = str(name).strip("*").casefold()
    shares = {}
    for one in names:
        parts = one.casefold().split(".")
        spans = [".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]
        shares[one] = max(difflib.SequenceMatcher(None, wanted, span).ratio() for span in spans)
    return sorted((one for one in names if shares[one] >= 0.75), key=lambda one: -shares[one])[:most]


def _free(name: str, taken: Mapping[str, object]) -> str:
    calls, unique = 1, name
    while unique in taken:
        calls += 1
        unique = f"{name}#{calls}"
    return unique

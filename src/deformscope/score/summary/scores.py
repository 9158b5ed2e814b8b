"""The scores of a run: every metric of every layer with intervals, compared with nulls."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field as dataclass_field
from typing import Any

from .columns import Table
from .metrics import METRICS
from .rows import VIEWS, Part, part_from_json, part_to_json, with_interval
from .verdicts import Verdict, as_text, verdicts


@dataclass(frozen=True, repr=False)
class Scores:
    """The result of ``score``, as in ``scores.json``.

    Example:
        >>> from deformscope.score import read_scores
        >>> scores = read_scores("DIR")                         # of a finished run
        >>> [verdict.answer for verdict in scores.verdicts]     # print(scores) tells more
        ['not shown', 'not shown', 'not shown']
        >>> rows = scores.part("whole").best                    # metric, layer, n, sources, gains over each null
        >>> column = scores.views["whole"].column("heads.stride16.deform", "field")
        >>> len(column.image["auroc"])                          # photo by photo
        2
    """

    run: dict[str, Any]
    """Detector, data and settings."""
    parts: tuple[Part, ...]
    """``whole``, ``crop``, ``several objects``, ``size S`` …, ``class cat`` …"""
    problems: dict[str, list[str]] = dataclass_field(default_factory=dict)
    """Photos without metrics, by reason."""
    views: Mapping[str, Table] = dataclass_field(default_factory=dict, compare=False)
    """Numbers of each photo and object, for ``whole`` photos and for off-centre crops (``crop``)."""

    def part(self, name: str) -> Part | None:
        """The part of that name."""
        return next((part for part in self.parts if part.name == name), None)

    @property
    def verdicts(self) -> list[Verdict]:
        """One for each of the paper's three claims."""
        return verdicts(self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data without the views; NaN as null."""
        return {
            "run": self.run,
            "problems": self.problems,
            "figures": {m.name: {"claim": m.claim, "text": m.text, "unit": m.unit} for m in METRICS},
            "parts": [part_to_json(part) for part in self.parts],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], views: Mapping[str, Table] | None = None) -> Scores:
        """What :meth:`to_json` made. Raises KeyError, TypeError or ValueError for anything else."""
        problems = {str(reason): [str(one) for one in files] for reason, files in content["problems"].items()}
        parts = tuple(part_from_json(part) for part in content["parts"])
        return cls(dict(content["run"]), parts, problems, views or {})

    def __repr__(self) -> str:
        return f"Scores({', '.join(f'{part.name}: {part.photos} photos' for part in self.parts if part.name in VIEWS)})"

    def __str__(self) -> str:
        """The verdict for each claim, and the number of photos without metrics."""
        missing = [f"{len(files)} photos: {reason}" for reason, files in self.problems.items()]
        return "\n\n".join([self.title(), as_text(self.verdicts), *missing])

    def title(self) -> str:
        """The detector, and what it was measured on."""
        run = self.run
        photos = f"{run.get('records', '?')} of {run.get('photos', '?')} photos"
        return f"{run.get('detector', 'detector')} on {run.get('data', '')}/{run.get('annotations', '')}: {photos}"

    def _repr_html_(self) -> str:
        cells = []
        for verdict in self.verdicts:
            for view, row in verdict.rows.items():
                value = with_interval(row.sources["field"])
                texts = (row.metric.text, VIEWS[view], value, verdict.reason(view), row.layer)
                head = f"<th rowspan={len(verdict.rows)}>{html.escape(verdict.claim)}<br>{verdict.answer}</th>"
                first = view == next(iter(verdict.rows))
                cells.append(f"<tr>{head * first}{''.join(f'<td>{html.escape(text)}</td>' for text in texts)}</tr>")
        headings = ("claim", "metric", "view", "offsets [95 %]", "against the nulls", "layer")
        head = "".join(f"<th>{heading}</th>" for heading in headings)
        return f"<p>{html.escape(self.title())}</p><table><tr>{head}</tr>{''.join(cells)}</table>"

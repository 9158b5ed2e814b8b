"""A verdict for each claim: its leading metric compared with every null, on whole photos and on off-centre crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..measures.nulls import NAMES
from .metrics import CONDENSATION, SEGMENTATION, SIZE
from .rows import VIEWS, Part, Row, number, with_interval

LEADING = {
    CONDENSATION: ("Features condense on objects", "pointing"),
    SEGMENTATION: ("Divergence segments objects", "auroc"),
    SIZE: ("Circles tell the size of objects", "spearman_centre"),
}
"""For each claim, a sentence and the leading metric."""
HOLDS, PARTLY, NOT_SHOWN, UNMEASURED = "holds", "holds in part", "not shown", "not measured"


@dataclass(frozen=True)
class Verdict:
    """The verdict on one claim."""

    claim: str
    """The claim as a sentence."""
    rows: dict[str, Row]
    """The leading metric at its best layer, by view (``whole``, ``crop``)."""
    seen: tuple[str, ...] = ()
    """Views with too few photos to choose the layer on one half and measure on the other."""

    @property
    def answer(self) -> str:
        """``holds`` if the offsets beat every null in each view, ``holds in part`` if they do in one of two views."""
        if not self.rows:
            return UNMEASURED
        beaten = [not row.unbeaten for row in self.rows.values()]
        return HOLDS if all(beaten) else PARTLY if any(beaten) else NOT_SHOWN

    def reason(self, view: str) -> str:
        """The nulls that the offsets do not beat in a view, or the nearest of those that they beat."""
        row = self.rows[view]
        if row.unbeaten:
            return "does not beat " + ", ".join(_named(row, name) for name in row.unbeaten)
        nearest = min(
            (name for name in row.gains if name != "filled"), key=lambda name: row.gains[name].value, default=None
        )
        return "beats every null" + (f", the nearest is {_named(row, nearest)}" if nearest else "")


def verdicts(parts: Sequence[Part]) -> list[Verdict]:
    """The verdict for each claim."""
    views = [part for part in parts if part.name in VIEWS]
    found = []
    for claim, metric in LEADING.values():
        rows = {part.name: row for part in views if (row := _leading(part, metric)) is not None}
        found.append(Verdict(claim, rows, tuple(part.name for part in views if not part.best)))
    return found


def caveat(found: Sequence[Verdict]) -> str:
    """A note if there are few photos, else an empty text."""
    views = [words for view, words in VIEWS.items() if any(view in verdict.seen for verdict in found)]
    if not views:
        return ""
    return f"Few {' and '.join(views)}: the layer shown is the best on the same photos, which flatters it."


def _leading(part: Part, metric: str) -> Row | None:
    """A metric at its best layer, chosen on one half of the photos and measured on the other; on all if few."""
    rows = [row for row in part.best or part.rows if row.metric.name == metric and row.gains]
    return max(rows, key=lambda row: row.sources["field"].value, default=None)


def as_text(found: Sequence[Verdict]) -> str:
    """The verdicts for a terminal."""
    lines = []
    for verdict in found:
        lines += ["", f"{verdict.claim}: {verdict.answer}"]
        for view, row in verdict.rows.items():
            value = with_interval(row.sources["field"])
            lines.append(f"  {VIEWS[view]:16}  {value:22}  {verdict.reason(view)}")
            lines.append(f"  {'':16}  {row.metric.text}, {row.n} {row.metric.of}, {row.layer}")
    if caveat(found):
        lines += ["", caveat(found)]
    return "\n".join(lines[1:])


def _named(row: Row, null: str) -> str:
    return f"{NAMES[null]} ({number(row.sources[null].value)})"

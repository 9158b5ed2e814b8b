"""Schedules of the weight of supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import DeformscopeError

Kind = Literal["constant", "decay", "warmup"]


@dataclass(frozen=True)
class Schedule:
    """A weight as a function of the step.

    ``constant``; ``decay``, linear to zero at ``steps``; ``warmup``, linear from zero to the full weight at ``steps``.

    Example:
        >>> weight = Schedule(0.5, "decay", steps=1000)
        >>> weight(0), weight(500), weight(2000)
        (0.5, 0.25, 0.0)
    """

    weight: float
    kind: Kind = "constant"
    steps: int = 1

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise DeformscopeError(f"weight={self.weight}: expected at least 0")
        if self.steps < 1:
            raise DeformscopeError(f"steps={self.steps}: expected at least 1")
        if self.kind not in ("constant", "decay", "warmup"):
            raise DeformscopeError(f"kind={self.kind!r}: expected one of 'constant', 'decay', 'warmup'")

    def __call__(self, step: int) -> float:
        """The weight at a step, counted from 0."""
        passed = min(step / self.steps, 1.0)
        return self.weight * {"constant": 1.0, "decay": 1 - passed, "warmup": passed}[self.kind]

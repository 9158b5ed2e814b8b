"""Do features condense on object centres? Pure functions of one map of cells and one object or all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ...fields.cell_maps import CellMaps
from .annotations import Thing

Array = np.ndarray


def pointing(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> float:
    """The pointing game: 1 where the highest score lies on an object, else 0; of equally high ones the share."""
    return float(inside[score >= score.max()].mean())


def ring_chance(score: Float[Array, " p"], inside: Bool[Array, " p"], ring: Int[Array, " p"]) -> float:
    """What the pointing game would give a random place as far from the photo's centre as the highest score is."""
    share = np.array(
        [inside[ring == number].mean() if (ring == number).any() else 0 for number in range(ring.max() + 1)]
    )
    return float(share[ring[score >= score.max()]].mean())


def sinks(score: Float[Array, " p"], points: Float[Array, "p 2"], on: Bool[Array, " p"]) -> Float[Array, "s 2"]:
    """The places (y, x) px of the highest score on an object: one, unless several are as high; none off the lattice."""
    return points[on][score[on] >= score[on].max()] if on.any() else points[:0]


def sink_distance(found: Float[Array, "s 2"], thing: Thing) -> float:
    """Distance of an object's sink from its centre, in sqrt(box area); the mean over equally strong ones."""
    if not len(found):
        return float("nan")
    return float(np.linalg.norm(found - np.array(thing.centre), axis=-1).mean() / scale(thing))


def scale(thing: Thing) -> float:
    """sqrt(box area), px."""
    return float(np.sqrt(thing.size[0] * thing.size[1]))


@dataclass(frozen=True)
class Flow:
    """How an object's cells move by d_f; distances in units of sqrt(box area)."""

    towards: float
    """Share of its cells whose d_f points towards its centre (less than 90° off); no d_f counts half."""
    cosine: float
    """Mean cosine of d_f with the direction to its centre; no d_f counts 0."""
    ends_inside: float
    """Share of its cells that end on it when they follow d_f."""
    end_distance: float
    """Mean distance from its centre at which they end."""
    moved_distance: float
    """The same after moving by d_f once, as the arrows are drawn."""


def flow(maps: CellMaps, ends: Float[Array, "h w 2"], thing: Thing) -> Flow:
    """How the cells on ``thing`` move; an object between the cells is given the one nearest to its centre.

    ``ends`` are those of :meth:`CellMaps.ends`, so that they are found once for all objects.
    """
    places = maps.centres()
    on = cells_on(maps, thing)
    middle = np.array(thing.centre)
    direction, d_f = middle - places[on], maps.d_f[on]
    lengths = np.linalg.norm(direction, axis=-1) * np.linalg.norm(d_f, axis=-1)
    cosine = (direction * d_f).sum(axis=-1) / np.maximum(lengths, 1e-12)
    reached = {"end": ends[on], "moved": places[on] + d_f}
    distance = {name: np.linalg.norm(at - middle, axis=-1).mean() / scale(thing) for name, at in reached.items()}
    return Flow(
        towards=float(np.where(lengths > 1e-12, cosine > 0, 0.5).mean()),
        cosine=float(cosine.mean()),
        ends_inside=float(thing.covers(ends[on]).mean()),
        end_distance=float(distance["end"]),
        moved_distance=float(distance["moved"]),
    )


def cells_on(maps: CellMaps, thing: Thing) -> Bool[Array, "h w"]:
    """The cells that lie on an object, or else the one nearest to its centre."""
    on = thing.covers(maps.centres())
    if not on.any():
        nearest = np.round(maps.to_cells(np.array(thing.centre))).astype(int)
        on[tuple(np.clip(nearest, 0, np.array(on.shape) - 1))] = True
    return on

"""Do features condense on object centres? Pure functions of one map of cells and one object or all of them."""

from __future__ import annotations

from collections.abc import Sequence
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
    share = np.bincount(ring, inside) / np.maximum(np.bincount(ring), 1)
    return float(share[ring[score >= score.max()]].mean())


def sinks(
    score: Float[Array, "s p"], on: Sequence[Int[Array, " _"]]
) -> tuple[Int[Array, " k"], Int[Array, " k"], Int[Array, " k"]]:
    """Source, object and place of each source's highest score on each object: one, unless several are as high.

    ``on`` are the places on each object; none on one that lies between the places of the lattice.
    """
    found = [np.zeros((3, 0), dtype=int)]
    for thing, places in enumerate(on):
        if places.size:
            there = score[:, places]
            source, top = np.nonzero(there >= there.max(axis=1, keepdims=True))
            found.append(np.stack([source, np.full(len(top), thing), places[top]]))
    source, thing_of, place = np.concatenate(found, axis=1)
    return source, thing_of, place


def centres(things: Sequence[Thing]) -> Float[Array, "m 2"]:
    """Of the boxes, (y, x) px."""
    return np.array([thing.centre for thing in things], dtype=float).reshape(-1, 2)


def scales(things: Sequence[Thing]) -> Float[Array, " m"]:
    """sqrt(box area), px."""
    return np.array([np.sqrt(thing.size[0] * thing.size[1]) for thing in things], dtype=float)


@dataclass(frozen=True)
class Movement:
    """How the cells of m objects move by the d_f of each of s sources; distances in units of sqrt(box area)."""

    towards: Float[Array, "s m"]
    """Share of its cells whose d_f points towards its centre (less than 90° off); no d_f counts half."""
    cosine: Float[Array, "s m"]
    """Mean cosine of d_f with the direction to its centre; no d_f counts 0."""
    ends_inside: Float[Array, "s m"]
    """Share of its cells that end on it when they follow d_f."""
    end_distance: Float[Array, "s m"]
    """Mean distance from its centre at which they end."""
    moved_distance: Float[Array, "s m"]
    """The same after moving by d_f once, as the arrows are drawn."""


def movement(
    d_f: Float[Array, "s c 2"],
    places: Float[Array, "c 2"],
    ends: Float[Array, "s c 2"],
    things: Sequence[Thing],
    counts: Sequence[int],
) -> Movement:
    """How the cells of ``things`` move: of the c cells the first ``counts[0]`` are on the first of them, and so on.

    ``places`` of the cells, and where they end by following d_f, are in (y, x) photo px.
    """
    first = np.cumsum([0, *counts[:-1]])
    middle, unit = (np.repeat(values, counts, axis=0) for values in (centres(things), scales(things)))

    def mean(values: Float[Array, "s c"]) -> Float[Array, "s m"]:
        return np.add.reduceat(values, first, axis=1) / np.array(counts)

    direction = middle - places
    lengths = np.linalg.norm(direction, axis=-1) * np.linalg.norm(d_f, axis=-1)
    cosine = (direction * d_f).sum(axis=-1) / np.maximum(lengths, 1e-12)
    inside = [
        thing.covers(ends[:, start : start + count]) for thing, start, count in zip(things, first, counts, strict=True)
    ]
    return Movement(
        towards=mean(np.where(lengths > 1e-12, (cosine > 0).astype(float), 0.5)),
        cosine=mean(cosine),
        ends_inside=mean(np.concatenate(inside, axis=1).astype(float)),
        end_distance=mean(np.linalg.norm(ends - middle, axis=-1) / unit),
        moved_distance=mean(np.linalg.norm(places + d_f - middle, axis=-1) / unit),
    )


def cells_on(maps: CellMaps, thing: Thing, places: Float[Array, "h w 2"] | None = None) -> Bool[Array, "h w"]:
    """The cells, whose centres are ``places``, that lie on an object, or else the one nearest to its centre."""
    on = thing.covers(maps.centres() if places is None else places)
    if not on.any():
        nearest = np.round(maps.to_cells(np.array(thing.centre))).astype(int)
        on[tuple(np.clip(nearest, 0, np.array(on.shape) - 1))] = True
    return on

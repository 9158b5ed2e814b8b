"""Metrics of condensation: do features move to the centres of objects?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ...fields.cell_maps import CellMaps
from .annotations import Thing

Array = np.ndarray


def pointing(score: Float[Array, " p"], inside: Bool[Array, " p"]) -> float:
    """Pointing game: 1 if the highest score lies on an object, else 0; for equally high scores the share on objects."""
    return float(inside[score >= score.max()].mean())


def ring_chance(score: Float[Array, " p"], inside: Bool[Array, " p"], ring: Int[Array, " p"]) -> float:
    """Expected pointing game of a random place in the ring of the highest score."""
    share = np.bincount(ring, inside) / np.maximum(np.bincount(ring), 1)
    return float(share[ring[score >= score.max()]].mean())


def sinks(
    score: Float[Array, "s p"], on: Sequence[Int[Array, " _"]]
) -> tuple[Int[Array, " k"], Int[Array, " k"], Int[Array, " k"]]:
    """Source, object and place of the highest score of each source on each object; several if they are equally high.

    ``on`` has the places on each object. Objects between the places of the lattice have none.
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
    """Centres of the boxes, (y, x) px."""
    return np.array([thing.centre for thing in things], dtype=float).reshape(-1, 2)


def scales(things: Sequence[Thing]) -> Float[Array, " m"]:
    """sqrt(box area), px."""
    return np.array([np.sqrt(thing.size[0] * thing.size[1]) for thing in things], dtype=float)


@dataclass(frozen=True)
class Movement:
    """How the cells of m objects move by the d_f of each of s sources; distances in units of sqrt(box area)."""

    towards: Float[Array, "s m"]
    """Share of cells whose d_f points towards the object's centre (within 90°); zero d_f counts half."""
    cosine: Float[Array, "s m"]
    """Mean cosine between d_f and the direction to the object's centre; zero d_f counts 0."""
    ends_inside: Float[Array, "s m"]
    """Share of cells that end on the object when they follow d_f."""
    end_distance: Float[Array, "s m"]
    """Mean distance of these ends from the object's centre."""
    moved_distance: Float[Array, "s m"]
    """Mean distance from the object's centre after moving by d_f once."""


def movement(
    d_f: Float[Array, "s c 2"],
    places: Float[Array, "c 2"],
    ends: Float[Array, "s c 2"],
    things: Sequence[Thing],
    counts: Sequence[int],
) -> Movement:
    """How the cells of ``things`` move. The first ``counts[0]`` of the c cells are on the first object, and so on.

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
    """The cells (with centres ``places``) on an object, or the one nearest to its centre if there are none."""
    on = thing.covers(maps.centres() if places is None else places)
    if not on.any():
        nearest = np.round(maps.to_cells(np.array(thing.centre))).astype(int)
        on[tuple(np.clip(nearest, 0, np.array(on.shape) - 1))] = True
    return on

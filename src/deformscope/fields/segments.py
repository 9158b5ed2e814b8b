"""Objects out of offsets: regions of a photo on whose cells features condense, whatever their class.

Where cells end when they follow d_f (Eq. 2), they pile up in sinks. A watershed of the divergence (Eq. 4) floods from
the sinks over all places of negative divergence, and the circle at the sink (Fig. 3) says how far a region may reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import regionprops
from skimage.segmentation import watershed

from .cell_maps import CellMaps, ends, lattice, sample
from .field import OffsetField

Array = np.ndarray

REACH = 3.0
"""How many of its kernel's extents (regular grid and d_k) a region is wide at most. With the other constants, chosen
on training photos with weights before the packaged ones."""
EVIDENCE_BLUR, SINK_BLUR = 0.7, 0.5
"""Standard deviations, in cells, with which the divergence and the arrivals are smoothed."""
LEAST_ARRIVALS = 0.02
"""A sink needs this share of the largest sink's arrivals."""
FINEST, MOST_FINE, MOST_STARTS = 4, 128, 64
"""A cell is divided by up to the first, as long as the longer side has no more places than the second; what follows d_f
starts from no more places along it than the third, and from every cell at least."""


@dataclass(frozen=True)
class Segments:
    """The s regions of one photo, best first."""

    labels: Int[Array, "h w"]
    """For each photo px the number of its region, from 1; 0 where there is none."""
    scores: Float[Array, " s"]
    """Net inflow: −divergence summed over the region's cells, in cells (Gauss: the flow of d_f over its outline)."""
    sinks: Float[Array, "s 2"]
    """(y, x) px."""
    boxes: Float[Array, "s 4"]
    """xyxy px."""
    sizes: Float[Array, "s 2"]
    """Height and width by the circle at the sink: the extent of its kernel's sampling points, px. Proportional to an
    object's size; the factor is the detector's own."""

    @property
    def masks(self) -> Bool[Array, "s h w"]:
        """One mask a region, photo px."""
        return self.labels == np.arange(1, len(self.scores) + 1)[:, None, None]


@dataclass(frozen=True)
class Regions:
    """The same on a lattice of ``per_cell`` places a cell; cell (y, x) is the square around its centre."""

    labels: Int[Array, "rows columns"]
    scores: Float[Array, " s"]
    sinks: Float[Array, "s 2"]
    """(y, x) cells."""
    per_cell: int

    def at(self, cells: Float[Array, "*points 2"]) -> Int[Array, "*points"]:
        """The region at places (y, x) in cells; 0 where there is none."""
        return self.labels[places_of(cells, self.labels.shape, self.per_cell)]


def segments(field: OffsetField, group: int = 0) -> Segments:
    """The regions of one image's field (n = 1) and offset group.

    Raises DeformscopeError for a field of several images and for a group that it does not have.
    """
    maps = CellMaps.of(field, group)
    found = regions(maps)
    height, width = field.placement().size
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    labels = found.at(maps.to_cells(np.stack([y, x], axis=-1)))
    boxes = np.zeros((len(found.scores), 4))
    for region in regionprops(labels):
        top, left, bottom, right = region.bbox
        boxes[region.label - 1] = left, top, right, bottom
    extents = [sample(values, found.sinks) for values in (maps.height, maps.width)]
    sizes = np.stack(extents, axis=-1) + np.array(maps.regular)
    sinks = found.sinks * np.array(maps.step) + np.array(maps.origin)
    return Segments(labels, found.scores, sinks, boxes, np.clip(sizes, 0, None))


def regions(maps: CellMaps) -> Regions:
    """The regions of one map of cells, best first."""
    return regions_of([maps])[0]


def regions_of(maps: Sequence[CellMaps], arrived: Float[Array, "s rows columns 2"] | None = None) -> list[Regions]:
    """The regions of each of ``maps``, all of one shape: quicker together than one by one.

    ``arrived`` is what :func:`arrivals` says of them, where it is known already.
    """
    h, w = maps[0].div.shape
    fine = int(np.clip(MOST_FINE // max(h, w), 1, FINEST))
    cells = lattice((h, w), fine)
    known = arrivals(maps) if arrived is None else arrived
    return [_grown(one, cells, _sinks(at, (h, w), fine), fine) for one, at in zip(maps, known, strict=True)]


def arrivals(maps: Sequence[CellMaps]) -> Float[Array, "s rows columns 2"]:
    """Where a lattice of places, at least one a cell, ends that follows d_f of each of ``maps``; (y, x) in cells."""
    h, w = maps[0].div.shape
    starts = lattice((h, w), int(np.clip(MOST_STARTS // max(h, w), 1, FINEST)))
    return ends(maps, starts.reshape(-1, 2)).reshape(len(maps), *starts.shape)


def places_of(
    cells: Float[Array, "*points 2"], shape: tuple[int, int], per_cell: int
) -> tuple[Int[Array, "*points"], Int[Array, "*points"]]:
    """Row and column, in a lattice of ``shape`` with ``per_cell`` places a cell, of places (y, x) in cells."""
    row, column = (
        np.clip(np.floor((cells[..., axis] + 0.5) * per_cell).astype(int), 0, shape[axis] - 1) for axis in (0, 1)
    )
    return row, column


def _grown(maps: CellMaps, cells: Float[Array, "rows columns 2"], sinks: Int[Array, "s 2"], fine: int) -> Regions:
    """The regions around ``sinks``, (row, column) of the lattice ``cells``."""
    inflow = ndimage.gaussian_filter(-sample(maps.div, cells), EVIDENCE_BLUR * fine)
    sinks = sinks[inflow[tuple(sinks.T)] > 0]
    if not len(sinks):
        return Regions(np.zeros(inflow.shape, dtype=int), np.zeros(0), np.zeros((0, 2)), fine)
    markers = np.zeros(inflow.shape, dtype=int)
    markers[tuple(sinks.T)] = np.arange(len(sinks)) + 1
    labels = watershed(-inflow, markers, mask=inflow > 0)
    centres = cells[tuple(sinks.T)]
    reach = _reach(maps, centres)
    # The number 0, no region, reaches everywhere.
    centre_y, centre_x = np.append(0, centres[:, 0])[labels], np.append(0, centres[:, 1])[labels]
    reach_y, reach_x = np.append(np.inf, reach[:, 0])[labels], np.append(np.inf, reach[:, 1])[labels]
    away = ((cells[:, :1, 0] - centre_y) / reach_y) ** 2 + ((cells[:1, :, 1] - centre_x) / reach_x) ** 2
    labels = np.where(away <= 1, labels, 0)
    scores = np.bincount(labels.ravel(), inflow.ravel(), len(sinks) + 1)[1:] / fine**2
    order = np.argsort(-scores, kind="stable")
    rank = np.zeros(len(sinks) + 1, dtype=int)
    rank[order + 1] = np.arange(len(sinks)) + 1
    return Regions(rank[labels], scores[order], centres[order], fine)


def _sinks(arrived: Float[Array, "rows columns 2"], shape: tuple[int, int], fine: int) -> Int[Array, "s 2"]:
    """Where places end that follow d_f: peaks of the density of their ends, (row, column) of the lattice."""
    h, w = shape[0] * fine, shape[1] * fine
    rows, columns = places_of(arrived, (h, w), fine)
    arrivals = np.bincount((rows * w + columns).ravel(), minlength=h * w).reshape(h, w) * (h * w / rows.size)
    density = ndimage.gaussian_filter(arrivals, SINK_BLUR * fine)
    # Where nothing moves as many arrive everywhere as start, and that is no sink.
    least = max(LEAST_ARRIVALS * density.max(), 1.5)
    window = np.ones((2 * fine + 1, 2 * fine + 1))
    return _spaced(peak_local_max(density, footprint=window, threshold_abs=least, exclude_border=False), fine)


def _spaced(peaks: Int[Array, "p 2"], least: int) -> Int[Array, "s 2"]:
    """Those of the peaks, best first, that are no nearer than ``least`` to one before: only equally high ones are.

    What ``peak_local_max`` does with ``min_distance``, which takes longer than all the rest of a region.
    """
    near = np.abs(peaks[:, None] - peaks[None]).max(axis=-1) < least
    kept = np.ones(len(peaks), dtype=bool)
    for place in np.flatnonzero(np.tril(near, -1).any(axis=1)):
        kept[place] = not (near[place, :place] & kept[:place]).any()
    return peaks[kept]


def _reach(maps: CellMaps, sinks: Float[Array, "s 2"]) -> Float[Array, "s 2"]:
    """Half axes (y, x), in cells, of the ellipse of REACH kernel extents around each sink."""
    return np.stack(
        [
            REACH * np.maximum(sample(extent, sinks) + regular, step) / 2 / step
            for extent, regular, step in zip((maps.height, maps.width), maps.regular, maps.step, strict=True)
        ],
        axis=-1,
    )

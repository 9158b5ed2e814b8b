"""Segments: regions of a photo in which features gather, found from offsets alone, without classes.

Cells that follow d_f (Eq. 2) end in sinks. A watershed of the divergence (Eq. 4) grows from the sinks over all places
with negative divergence; the circle at a sink (Fig. 3) limits the extent of its region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from .cell_maps import CellMaps, ends, lattice, sample, sample_each, sample_grid
from .field import OffsetField

Array = np.ndarray

REACH = 3.0
"""Largest extent of a region, in extents of its kernel (regular grid and d_k). This and the other constants were chosen
on training photos, with weights before the packaged ones."""
EVIDENCE_BLUR, SINK_BLUR = 0.7, 0.5
"""Standard deviations, in cells, of the smoothing of the divergence and of the density of ends."""
LEAST_ARRIVALS = 0.02
"""Smallest density at a sink, relative to that of the largest one."""
FINEST, MOST_FINE, MOST_STARTS = 4, 128, 64
"""Largest subdivision of a cell, largest number of places along the longer side, and largest number of starts along it;
there is at least one start per cell."""


@dataclass(frozen=True)
class Segments:
    """The s regions of a photo, best first.

    Example:
        >>> found = ds.segments(field)
        >>> found.masks.shape == (len(found.scores), 300, 451)
        True
    """

    labels: Int[Array, "h w"]
    """The number of the region at each photo px, from 1; 0 for none."""
    scores: Float[Array, " s"]
    """Net inflow: −divergence summed over the cells of the region, in cells (by Gauss, the flux of d_f through its
    outline)."""
    sinks: Float[Array, "s 2"]
    """(y, x) px."""
    boxes: Float[Array, "s 4"]
    """xyxy px."""
    sizes: Float[Array, "s 2"]
    """Height and width from the circle at the sink: the extent of the kernel's sampling points, px. It is proportional
    to an object's size, with a factor that depends on the detector."""

    @property
    def masks(self) -> Bool[Array, "s h w"]:
        """One mask per region, photo px."""
        return self.labels == np.arange(1, len(self.scores) + 1)[:, None, None]


@dataclass(frozen=True)
class Regions:
    """The regions on a lattice with ``per_cell`` places per side of a cell; cell (y, x) is the square around its
    centre."""

    labels: Int[Array, "rows columns"]
    scores: Float[Array, " s"]
    sinks: Float[Array, "s 2"]
    """(y, x) cells."""
    per_cell: int

    def at(self, cells: Float[Array, "*points 2"]) -> Int[Array, "*points"]:
        """The number of the region at places (y, x) in cells; 0 for none."""
        return self.labels[places_of(cells, self.labels.shape, self.per_cell)]


def segments(field: OffsetField, group: int = 0) -> Segments:
    """Find the segments of a field of one image (n = 1), for one offset group.

    Raises DeformscopeError for a field of several images and for an unknown group.

    Example:
        >>> found = ds.segments(field)
        >>> found.labels.shape, len(found.scores) == len(found.boxes)
        ((300, 451), True)
    """
    from skimage.measure import regionprops

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
    """The regions of each of ``maps``, all of one shape; faster than one by one.

    ``arrived`` is the result of :func:`arrivals`, if it is known already.
    """
    from scipy import ndimage

    h, w = maps[0].div.shape
    fine = int(np.clip(MOST_FINE // max(h, w), 1, FINEST))
    cells = lattice((h, w), fine)
    inflow = -sample_grid(np.array([one.div for one in maps]), cells[:, 0, 0], cells[0, :, 1])
    blur = EVIDENCE_BLUR * fine
    inflow = ndimage.gaussian_filter(inflow, (0, blur, blur))
    sinks = _sinks(arrivals(maps) if arrived is None else arrived, (h, w), fine)
    sinks = [places[into[tuple(places.T)] > 0] for places, into in zip(sinks, inflow, strict=True)]
    reach = _reach(maps, [cells[tuple(places.T)] for places in sinks])
    return [_grown(*one, cells, fine) for one in zip(inflow, sinks, reach, strict=True)]


def arrivals(maps: Sequence[CellMaps]) -> Float[Array, "s rows columns 2"]:
    """Where the places of a lattice, at least one per cell, end when they follow d_f of each of ``maps``; (y, x) in
    cells."""
    h, w = maps[0].div.shape
    starts = lattice((h, w), int(np.clip(MOST_STARTS // max(h, w), 1, FINEST)))
    return ends(maps, starts.reshape(-1, 2)).reshape(len(maps), *starts.shape)


def places_of(
    cells: Float[Array, "*points 2"], shape: tuple[int, int], per_cell: int
) -> tuple[Int[Array, "*points"], Int[Array, "*points"]]:
    """Row and column, in a lattice of ``shape`` with ``per_cell`` places per cell, of places (y, x) in cells."""
    row, column = (
        np.clip(np.floor((cells[..., axis] + 0.5) * per_cell).astype(int), 0, shape[axis] - 1) for axis in (0, 1)
    )
    return row, column


def _grown(
    inflow: Float[Array, "rows columns"],
    sinks: Int[Array, "s 2"],
    reach: Float[Array, "s 2"],
    cells: Float[Array, "rows columns 2"],
    fine: int,
) -> Regions:
    """The regions around ``sinks``, (row, column) of the lattice ``cells``, within ``reach`` of them."""
    from skimage.segmentation import watershed

    if not len(sinks):
        return Regions(np.zeros(inflow.shape, dtype=int), np.zeros(0), np.zeros((0, 2)), fine)
    markers = np.zeros(inflow.shape, dtype=int)
    markers[tuple(sinks.T)] = np.arange(len(sinks)) + 1
    labels = watershed(-inflow, markers, mask=inflow > 0)
    centres = cells[tuple(sinks.T)]
    # Number 0, no region, has no limit.
    centre_y, centre_x = np.append(0, centres[:, 0])[labels], np.append(0, centres[:, 1])[labels]
    reach_y, reach_x = np.append(np.inf, reach[:, 0])[labels], np.append(np.inf, reach[:, 1])[labels]
    away = ((cells[:, :1, 0] - centre_y) / reach_y) ** 2 + ((cells[:1, :, 1] - centre_x) / reach_x) ** 2
    labels = np.where(away <= 1, labels, 0)
    scores = np.bincount(labels.ravel(), inflow.ravel(), len(sinks) + 1)[1:] / fine**2
    order = np.argsort(-scores, kind="stable")
    rank = np.zeros(len(sinks) + 1, dtype=int)
    rank[order + 1] = np.arange(len(sinks)) + 1
    return Regions(rank[labels], scores[order], centres[order], fine)


def _sinks(arrived: Float[Array, "s rows columns 2"], shape: tuple[int, int], fine: int) -> list[Int[Array, "_ 2"]]:
    """Sinks of each source: peaks of the density of the ends of places that follow d_f, (row, column) of the
    lattice."""
    from scipy import ndimage
    from skimage.feature import peak_local_max

    h, w = shape[0] * fine, shape[1] * fine
    rows, columns = places_of(arrived, (h, w), fine)
    count, per_source = len(arrived), rows[0].size
    place = rows * w + columns + (h * w) * np.arange(count)[:, None, None]
    ended = np.bincount(place.ravel(), minlength=count * h * w).reshape(count, h, w) * (h * w / per_source)
    blur = SINK_BLUR * fine
    window = np.ones((2 * fine + 1, 2 * fine + 1))
    found = []
    for density in ndimage.gaussian_filter(ended, (0, blur, blur)):
        # Where nothing moves, as many places end as start everywhere, which is not a sink.
        least = max(LEAST_ARRIVALS * density.max(), 1.5)
        peaks = peak_local_max(density, footprint=window, threshold_abs=least, exclude_border=False)
        found.append(_spaced(peaks, fine))
    return found


def _spaced(peaks: Int[Array, "p 2"], least: int) -> Int[Array, "s 2"]:
    """The peaks, best first, without those nearer than ``least`` to a previous one (only equally high ones are).

    The result is that of ``peak_local_max`` with ``min_distance``, which would take longer than everything else.
    """
    from scipy.spatial import KDTree

    kept = np.ones(len(peaks), dtype=bool)
    if len(peaks) < 2:
        return peaks
    # Not the distances of all pairs: a field that is alike everywhere has thousands of equal peaks.
    pairs = KDTree(peaks).query_pairs(least - 0.5, p=np.inf, output_type="ndarray")
    for before, after in pairs[np.lexsort(pairs.T)]:
        kept[after] &= not kept[before]
    return peaks[kept]


def _reach(maps: Sequence[CellMaps], sinks: Sequence[Float[Array, "_ 2"]]) -> list[Float[Array, "_ 2"]]:
    """Half axes (y, x), in cells, of the ellipse around each sink of each of ``maps``, REACH kernel extents wide."""
    counts = [len(own) for own in sinks]
    source, places = np.repeat(np.arange(len(maps)), counts), np.concatenate(sinks)
    axes = []
    for axis, extents in enumerate(([one.height for one in maps], [one.width for one in maps])):
        regular, step = (np.array(sizes)[:, axis] for sizes in ([m.regular for m in maps], [m.step for m in maps]))
        kernel = sample_each(np.array(extents), source, places) + regular[source]
        axes.append(REACH * np.maximum(kernel, step[source]) / 2 / step[source])
    return np.split(np.stack(axes, axis=-1), np.cumsum(counts)[:-1])

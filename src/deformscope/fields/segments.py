"""Objects out of offsets: regions of a photo on whose cells features condense, whatever their class.

Where cells end when they follow d_f (Eq. 2), they pile up in sinks. A watershed of the divergence (Eq. 4) floods from
the sinks over all places of negative divergence, and the circle at the sink (Fig. 3) says how far a region may reach.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.measure import regionprops
from skimage.segmentation import watershed

from .cell_maps import CellMaps, follow, sample
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
        index = np.floor((cells + 0.5) * self.per_cell).astype(int)
        rows, columns = (np.clip(index[..., axis], 0, self.labels.shape[axis] - 1) for axis in (0, 1))
        return self.labels[rows, columns]


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
    h, w = maps.div.shape
    fine = int(np.clip(MOST_FINE // max(h, w), 1, FINEST))
    cells = _lattice((h, w), fine)
    inflow = ndimage.gaussian_filter(-sample(maps.div, cells), EVIDENCE_BLUR * fine)
    sinks = _sinks(maps, fine)
    sinks = sinks[inflow[tuple(sinks.T)] > 0]
    if not len(sinks):
        return Regions(np.zeros(inflow.shape, dtype=int), np.zeros(0), np.zeros((0, 2)), fine)
    markers = np.zeros(inflow.shape, dtype=int)
    markers[tuple(sinks.T)] = np.arange(len(sinks)) + 1
    labels = watershed(-inflow, markers, mask=inflow > 0)
    for number, sink in enumerate(sinks, start=1):
        labels[(labels == number) & ~_within_reach(maps, cells, cells[tuple(sink)])] = 0
    scores = ndimage.sum_labels(inflow, labels, np.arange(len(sinks)) + 1) / fine**2
    order = np.argsort(-scores, kind="stable")
    rank = np.zeros(len(sinks) + 1, dtype=int)
    rank[order + 1] = np.arange(len(sinks)) + 1
    return Regions(rank[labels], scores[order], cells[tuple(sinks[order].T)], fine)


def _lattice(shape: tuple[int, int], fine: int) -> Float[Array, "rows columns 2"]:
    """``fine`` × ``fine`` places in each cell, (y, x) in cells."""
    y, x = ((np.arange(length * fine) + 0.5) / fine - 0.5 for length in shape)
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)


def _sinks(maps: CellMaps, fine: int) -> Int[Array, "s 2"]:
    """Where places end that follow d_f: peaks of the density of their ends, (row, column) of the lattice."""
    h, w = maps.div.shape
    starts = int(np.clip(MOST_STARTS // max(h, w), 1, fine))
    ends = follow(maps.d_f / np.array(maps.step), _lattice((h, w), starts).reshape(-1, 2))
    rows, columns = (np.clip(np.floor((ends[:, i] + 0.5) * fine).astype(int), 0, (h, w)[i] * fine - 1) for i in (0, 1))
    arrivals = np.zeros((h * fine, w * fine))
    np.add.at(arrivals, (rows, columns), (fine / starts) ** 2)
    density = ndimage.gaussian_filter(arrivals, SINK_BLUR * fine)
    # Where nothing moves as many arrive everywhere as start, and that is no sink.
    least = max(LEAST_ARRIVALS * density.max(), 1.5)
    return peak_local_max(density, min_distance=fine, threshold_abs=least, exclude_border=False).reshape(-1, 2)


def _within_reach(
    maps: CellMaps, cells: Float[Array, "rows columns 2"], sink: Float[Array, 2]
) -> Bool[Array, "rows columns"]:
    """The ellipse of REACH kernel extents around a sink."""
    axes = [
        REACH * max(float(sample(extent, sink[None])[0]) + regular, step) / 2 / step
        for extent, regular, step in zip((maps.height, maps.width), maps.regular, maps.step, strict=True)
    ]
    return (((cells - sink) / np.array(axes)) ** 2).sum(axis=-1) <= 1

"""Offset fields, the two viewpoints on them, stacked layers, segments; neither matplotlib nor torchvision here."""

from .field import CellGrid as CellGrid, OffsetField as OffsetField, Placement as Placement
from .viewpoint import divergence as divergence, extent as extent, radius as radius, split as split

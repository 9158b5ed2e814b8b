"""Offset fields, the two viewpoints on them, composed layers, segments. Imports neither matplotlib nor torchvision."""

from .field import OffsetField as OffsetField
from .places import CellGrid as CellGrid, Placement as Placement
from .viewpoint import divergence as divergence, extent as extent, radius as radius, split as split

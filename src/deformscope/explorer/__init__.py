"""Explore by hand: photos, fields and detections as one self-contained HTML page."""

from .document import page as page, write as write
from .notebook import Exploration as Exploration, explore as explore

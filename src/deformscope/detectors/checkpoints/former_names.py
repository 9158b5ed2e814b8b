"""Former names in older weights files, recipes and run folders."""

from __future__ import annotations

ARCHITECTURES = {"one_stage": "dense", "two_stage": "dense_rcnn"}
"""Former to present names of architectures."""
CONFIG_KEYS = {"stacked": "deform_layers", "rois": "rois_per_image"}
"""Former to present keys of a dense detector's configuration."""

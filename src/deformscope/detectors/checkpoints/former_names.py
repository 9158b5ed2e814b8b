"""Names that older weights files, recipes and run folders have for what is called otherwise now."""

from __future__ import annotations

ARCHITECTURES = {"one_stage": "dense", "two_stage": "dense_rcnn"}
"""Former and present names of architectures."""
CONFIG_KEYS = {"stacked": "deform_layers", "rois": "rois_per_image"}
"""Former and present keys of a dense detector's configuration."""

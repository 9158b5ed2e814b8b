"""Colours of figures."""

ARROW = "#d7191c"
TREND = "#ffd43b"
TOGETHER = "#00a087"
"""Circles of kernels that are drawn together; no colour of :data:`SIZE_MAP`."""
MASK = (0.90, 0.05, 0.10)
BOX = "#00b8d9"
PLACES = ("#ff3d00", "#00b0ff", "#ffd600", "#00e676", "#e040fb", "#ffffff")
INK, FAINT = "#1a1a1a", "#666666"
SIZE_MAP, MODULATION_MAP, SIGNED_MAP = "plasma", "viridis", "RdBu_r"

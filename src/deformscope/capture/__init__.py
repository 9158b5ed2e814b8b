"""Capture the offsets of any PyTorch model, with the place of every cell and where the offsets came from."""

from .context_managers import capture as capture, placed as placed

"""Detectors with deformable convolutions, and loading them by name or file."""

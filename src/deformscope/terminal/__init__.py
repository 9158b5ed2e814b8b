"""Output on a terminal during work."""

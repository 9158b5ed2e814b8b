"""Metrics of all photos with intervals, compared with nulls; verdicts and tables."""

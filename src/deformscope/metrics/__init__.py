"""Metrics that are independent of offsets: average precision, matching, bootstrap intervals, evaluation of a
detector."""

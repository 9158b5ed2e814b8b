"""Metrics that are independent of offsets: average precision, matching, bootstrap intervals, evaluation of a
detector."""

from .coco import (
    Score as Score,
    average_precision as average_precision,
    evaluate as evaluate,
    same_classes as same_classes,
)

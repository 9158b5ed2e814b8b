"""Supervision of offsets: a loss on them during training."""

from .schedule import Schedule as Schedule
from .supervision import OffsetSupervision as OffsetSupervision

"""A loss on offsets while any model trains."""

from .schedule import Schedule as Schedule
from .supervision import OffsetSupervision as OffsetSupervision

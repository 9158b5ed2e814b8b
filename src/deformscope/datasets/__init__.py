"""Annotated photos in COCO's layout: read and checked in the same way for training, scoring and evaluation."""

from .coco import Broken as Broken, CocoDataset as CocoDataset, read_coco as read_coco
from .records import CocoObject as CocoObject, CocoPhoto as CocoPhoto, Problem as Problem

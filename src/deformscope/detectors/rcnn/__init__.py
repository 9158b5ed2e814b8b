"""Faster and Mask R-CNN on ResNet-FPN, with MMDetection's and Detectron2's conventions."""

from .config import (
    DETECTRON2 as DETECTRON2,
    MMDETECTION as MMDETECTION,
    Deformable as Deformable,
    RCNNConfig as RCNNConfig,
)
from .rcnn import RCNN as RCNN, build as build

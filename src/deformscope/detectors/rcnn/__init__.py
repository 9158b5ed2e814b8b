"""Faster and Mask R-CNN on ResNet-FPN, with MMDetection's and Detectron2's conventions."""

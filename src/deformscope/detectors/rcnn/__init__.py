"""Faster and Mask R-CNN on ResNet-FPN, by MMDetection's and Detectron2's rules."""

"""Annotated photos in COCO's layout: one reader for training and for measurements."""

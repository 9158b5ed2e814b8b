"""Annotated photos in COCO's layout: one reader for everything that learns from them or measures on them."""

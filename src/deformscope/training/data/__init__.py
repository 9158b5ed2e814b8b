"""Training data: annotated photos and synthetic shapes, their order, random views, cached feature maps."""

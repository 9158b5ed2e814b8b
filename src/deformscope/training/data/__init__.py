"""What a run learns from: annotated photos and drawn shapes, their order, random views, cached maps of the trunk."""

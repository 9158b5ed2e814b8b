"""The health of offsets: checks of every deformable convolution, and logging them while a model trains."""

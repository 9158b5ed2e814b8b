"""The health of offsets: checks of every deformable convolution, and logging during training."""

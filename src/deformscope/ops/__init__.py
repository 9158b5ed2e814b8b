"""The deformable convolution itself."""

from .deform_conv import deform_conv2d as deform_conv2d

"""The operator as literal loops lies with the operator's tests, modules that sample with those of recording."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
sys.path.insert(0, str(Path(__file__).parents[1] / "recording"))

from deformscope.detectors.rcnn.config import Deformable, RCNNConfig
from deformscope.detectors.rcnn.rcnn import RCNN


@pytest.fixture
def thin_rcnn():
    """A small Faster R-CNN of modulated deformable convolutions in four groups, all weights drawn at random."""
    torch.manual_seed(5)
    config = RCNNConfig(
        ("cat", "dog", "cow"),
        stem_channels=12,
        base_channels=8,
        fpn_channels=16,
        head_channels=20,
        deformable=Deformable.parse("mdconv_c3-c5_group4"),
    )
    detector = RCNN(config.resized_to(96, 160)).eval()
    with torch.no_grad():
        for name, value in detector.named_parameters():
            if "conv_offset" in name or "rpn" in name or "box_head" in name:
                value.copy_(0.1 * torch.randn(value.shape))
    return detector

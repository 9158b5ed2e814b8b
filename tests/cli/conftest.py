"""What tests of commands share: small weights and a photo."""

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A small untrained detector with random offsets, in a file of its own."""
    from deformscope.detectors.dense.config import DenseConfig
    from deformscope.detectors.dense.dense import DenseDetector

    torch.manual_seed(0)
    config = DenseConfig(("cat", "dog"), channels=16, shorter_side=64, longer_side=128)
    detector = DenseDetector(config)
    for head in detector.heads.values():
        torch.nn.init.normal_(head.deform.conv_offset.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    detector.save(path)
    return path


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3), dtype=np.uint8)).save(path)
    return path

"""Recordings of MMDetection, one by one, and thin detectors made on the spot."""

import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("deformscope.detectors", "typechecker.check"):
    pass

from deformscope.detectors.rcnn.rcnn import RCNN


@pytest.fixture(params=["faster", "mask"])
def oracle(oracles, request):
    return oracles[request.param]


@pytest.fixture
def thin():
    """Configurations of thin detectors, for files made on the spot."""
    from deformscope.detectors.rcnn.config import Deformable, RCNNConfig

    def config(deformable: str | None = "dconv_c3-c5", **settings) -> RCNNConfig:
        values = {
            "class_names": ("cat", "dog", "cow"),
            "stem_channels": 12,
            "base_channels": 8,
            "fpn_channels": 16,
            "head_channels": 20,
            "mask_channels": 18,
            "deformable": None if deformable is None else Deformable.parse(deformable),
        }
        return RCNNConfig(**values | settings)

    return config


@pytest.fixture
def random_rcnn(generator):
    """A detector with random weights everywhere, offset convolutions and running statistics included."""

    def make(config) -> RCNN:
        detector = RCNN(config).eval()
        with torch.no_grad():
            for name, value in detector.state_dict().items():
                if value.is_floating_point():
                    noise = torch.randn(value.shape, generator=generator)
                    if "running_var" in name or ("bn" in name and name.endswith("weight")):
                        value.copy_(0.5 + noise.abs())
                    elif value.ndim > 1:
                        value.copy_(noise / value[0].numel() ** 0.5)
                    else:
                        value.copy_(0.1 * noise)
        return detector

    return make

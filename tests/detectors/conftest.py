"""The oracle: recorded numbers of real MMDetection runs of two thin detectors, and these detectors loaded."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("deformscope.detectors", "typechecker.check"):
    import deformscope.detectors.checkpoints.mmdet
    import deformscope.detectors.checkpoints.native
    import deformscope.detectors.rcnn.build
    import deformscope.detectors.zoo

from deformscope.detectors.rcnn.rcnn import RCNN
from deformscope.fields.field import Placement

FILES = {"faster": "faster_rcnn_r50_fpn_dconv_c3-c5_tiny", "mask": "mask_rcnn_r50_fpn_mdconv_c3-c5_tiny"}


@dataclass(frozen=True)
class Oracle:
    """One recorded run: version 1 in a Faster R-CNN (``faster``) or version 2 in a Mask R-CNN (``mask``)."""

    path: Path
    recorded: dict = field(repr=False)
    photos: list[np.ndarray] = field(repr=False)
    resized: list[np.ndarray] = field(repr=False)

    @property
    def batch(self) -> torch.Tensor:
        return self.recorded["input"]

    @property
    def outputs(self) -> dict:
        return self.recorded["outputs"]

    @property
    def maps(self) -> list[torch.Tensor]:
        return [self.outputs[f"P{i}"] for i in range(2, 7)]

    @property
    def rpn(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [self.outputs[f"rpn_cls/{i}"] for i in range(5)], [self.outputs[f"rpn_bbox/{i}"] for i in range(5)]

    @property
    def placements(self) -> list[Placement]:
        metas = self.recorded["meta"]["img_metas"]
        return [Placement(meta["ori_shape"], (meta["scale_factor"][1], meta["scale_factor"][0])) for meta in metas]

    def load(self, **settings) -> RCNN:
        return deformscope.detectors.zoo.load(self.path, shorter_side=200, longer_side=320, **settings)


@pytest.fixture(scope="session")
def oracles(shared) -> dict[str, Oracle]:
    found = {}
    with np.load(shared / "oracle" / "images.npz") as images:
        photos = [np.ascontiguousarray(images[f"img{i}_bgr"][..., ::-1]) for i in (0, 1)]
        resized = [np.ascontiguousarray(images[f"img{i}_resized_bgr"][..., ::-1]) for i in (0, 1)]
    for key, name in FILES.items():
        # Our own file, with records that only the full unpickler reads.
        recorded = torch.load(shared / "oracle" / f"{name}.oracle.pt", weights_only=False)
        found[key] = Oracle(shared / "oracle" / f"{name}.pth", recorded, photos, resized)
    return found


@pytest.fixture(params=["faster", "mask"])
def oracle(oracles, request) -> Oracle:
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

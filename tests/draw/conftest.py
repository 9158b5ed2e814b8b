"""A random field over a small photo."""

import numpy as np
import pytest
import torch

from deformscope import OffsetField, Placement


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)


@pytest.fixture
def field(photo) -> OffsetField:
    random = torch.Generator().manual_seed(1)
    return OffsetField.from_tensor(
        torch.randn(1, 18, 15, 20, generator=random),
        reduction=8.0,
        placements=[Placement(photo.shape[:2], (1.0, 1.0))],
        name="layer",
    )

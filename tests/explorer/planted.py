"""Fields made by hand, of unequal sizes everywhere, on a photo made by hand."""

import numpy as np
import torch

from deformscope import CellGrid, Fields, OffsetField, Placement
from deformscope.analysis import Analysis
from deformscope.fields.segments import Segments

SIZE = (200, 312)
"""Of the planted photos: height and width, px."""
PLACES = [(40.3, 55.1), (118.7, 203.4), (171.2, 288.9)]
"""(y, x) px: three places of the photo, none near the edge of a cell."""


def planted_photo(seed: int = 0) -> np.ndarray:
    """A smooth grey-green photo: nothing in it is as red as the divergence's mask."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = 90 + 30 * np.sin(x / 23 + seed) + 30 * np.cos(y / 17)
    return np.stack([waves, waves + 20, waves], axis=-1).astype(np.uint8)


def on_steps(values: torch.Tensor) -> torch.Tensor:
    """Rounded to what the page's 16 bits hold exactly, so that its numbers are the library's."""
    return (values * 256).round() / 256


def planted_fields() -> Fields:
    """A strided, padded, grouped, modulated low layer, a contracting middle one and a coarse upper one.

    The network saw the photo 1.25 × 0.8 as large (y, x), shifted by (6, −4) px.
    """
    random = torch.Generator().manual_seed(7)
    placement = (Placement(SIZE, (1.25, 0.8), (6.0, -4.0)),)
    # A low layer: kernel (3, 2), stride (2, 1), two groups.
    h, w, g, kernel = 17, 34, 2, (3, 2)
    low = OffsetField(
        on_steps(torch.randn(1, g, 6, h, w, 2, generator=random) * 1.5),
        torch.rand(1, g, 6, h, w, generator=random),
        kernel_size=kernel,
        stride=(2, 1),
        padding=(1, 2),
        dilation=(1, 2),
        input_size=(34, 32),
        cells=CellGrid((8.0, 8.0), (3.5, 0.5)),
        placements=placement,
        name="body.low",
    )
    # All points of a kernel shifted towards cell (9.25, 21.5), farther ones more: divergence −0.25 − 0.125.
    h, w = 16, 30
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    shift = torch.stack([(9.25 - y) / 4, (21.5 - x) / 8], dim=-1)
    spread = torch.stack(torch.meshgrid(torch.arange(3) - 1, torch.arange(3) - 1, indexing="ij"), dim=-1).view(
        9, 1, 1, 2
    )
    middle = OffsetField(
        on_steps(shift + spread * (0.5 + (y + x)[..., None] / 32))[None, None],
        None,
        input_size=(h, w),
        cells=CellGrid((16.0, 8.0), (0.5, 0.5)),
        placements=placement,
        name="body.middle",
    )
    h, w = 8, 15
    top = OffsetField(
        on_steps(torch.randn(1, 1, 9, h, w, 2, generator=random)),
        None,
        input_size=(h, w),
        cells=CellGrid((32.0, 16.0), (0.5, 0.5)),
        placements=placement,
        name="body.top",
    )
    return Fields({field.name: field for field in (low, middle, top)})


def planted(seed: int = 0) -> Analysis:
    """A photo with these fields, three detections and their masks."""
    boxes = torch.tensor([[20.0, 30, 150, 170], [160, 40, 300, 190], [0, 0, 60, 50]])
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, 60:140, 40:120] = True
    detection = {
        "boxes": boxes,
        "labels": torch.tensor([1, 0, 1]),
        "scores": torch.tensor([0.91, 0.62, 0.2]),
        "masks": masks,
    }
    return Analysis(planted_photo(seed), planted_fields(), detection, ("cat", "dog"), "planted")


def planted_segments() -> Segments:
    """Two segments of the photo."""
    labels = np.zeros(SIZE, dtype=np.int32)
    labels[30:90, 40:120], labels[100:180, 170:300] = 1, 2
    boxes = np.array([[40.0, 30, 120, 90], [170, 100, 300, 180]])
    return Segments(labels, np.array([1.25, 0.5]), np.array([[60.0, 80], [140, 235]]), boxes, np.full((2, 2), 70.0))

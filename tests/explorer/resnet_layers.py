"""Fields of the sizes that a ResNet-50 with deformable layer2-4 has on a 1333×800 photo."""

import numpy as np
import torch

from deformscope import CellGrid, Fields, OffsetField, Placement
from deformscope.analysis import Analysis

SIZE = (800, 1333)
BLOCKS = ((2, 4, 8), (3, 6, 16), (4, 3, 32))
"""Stage, deformable convolutions, network px per output cell."""


def resnet50_fields(noise: float = 0.5) -> Fields:
    """13 layers over an 800×1344 input: smooth fields of a few cells and on them noise, which does not compress."""
    random = torch.Generator().manual_seed(50)
    fields = {}
    for stage, blocks, reduction in BLOCKS:
        for block in range(blocks):
            stride = 2 if block == 0 else 1
            h, w = 800 // reduction, 1344 // reduction
            coarse = torch.randn(18, 1, 5, 8, generator=random) * 3
            smooth = torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic", align_corners=True)
            offset = (smooth + noise * torch.randn(18, 1, h, w, generator=random)).view(1, 1, 9, 2, h, w).movedim(3, -1)
            name = f"backbone.layer{stage}.{block}.conv2"
            fields[name] = OffsetField(
                offset.contiguous(),
                stride=(stride, stride),
                input_size=(h * stride, w * stride),
                cells=CellGrid((reduction / stride,) * 2, (0.5, 0.5)),
                placements=(Placement(SIZE),),
                name=name,
            )
    return Fields(fields)


def resnet50_analysis() -> Analysis:
    """These fields on a photo as hard to compress as a rich one."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (50, 84, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)[: SIZE[0], : SIZE[1]]
    grain = random.normal(0, 6, coarse.shape)
    photo = np.clip(coarse + grain, 0, 255).astype(np.uint8)
    return Analysis(photo, resnet50_fields(), {}, (), "resnet50")

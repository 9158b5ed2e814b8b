"""The paper's detectors by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...errors import DeformscopeError
from ..offset_mode import OffsetMode
from .config import Deformable, RCNNConfig, coco_class_names
from .rcnn import RCNN


def build(
    architecture: str,
    *,
    deformable: str | None = "dconv_c3-c5",
    offset_mode: OffsetMode = "full",
    num_classes: int = 80,
    class_names: Sequence[str] | None = None,
) -> RCNN:
    """A freshly initialised detector, in train mode; its offset convolutions start at zero.

    ``architecture`` is ``faster_rcnn_r50_fpn`` or ``mask_rcnn_r50_fpn``, or either with r101. ``deformable`` names the
    version, stages and offset groups as MMDetection does: ``dconv_c3-c5``, ``mdconv_c3-c5_group4``; None: nowhere.
    ``offset_mode`` says which part of the offsets moves the kernel points: ``full``, ``feature`` (d_f), ``kernel``
    (d_k) or ``none``; modulation stays. With ``class_names`` their number counts. ImageNet weights of torchvision go
    in with ``detector.backbone.load_state_dict(resnet50(weights="DEFAULT").state_dict(), strict=False)``.

    Raises DeformscopeError when a name is unknown.
    """
    found = re.fullmatch(r"(faster|mask)_rcnn_r(50|101|152)_fpn", architecture)
    if not found:
        raise DeformscopeError(
            f"architecture={architecture!r}: expected faster_rcnn_r50_fpn, mask_rcnn_r50_fpn, or either with r101"
        )
    if class_names is None:
        class_names = numbered_class_names(num_classes)
    config = RCNNConfig(
        class_names=tuple(class_names),
        depth=int(found[2]),
        mask=found[1] == "mask",
        deformable=None if deformable is None else Deformable.parse(deformable),
        offset_mode=offset_mode,
    )
    return RCNN(config).train()


def numbered_class_names(number: int) -> tuple[str, ...]:
    """COCO's names where there are 80 classes, else numbers."""
    if number < 1:
        raise DeformscopeError(f"num_classes={number}: expected at least 1")
    return coco_class_names() if number == 80 else tuple(f"class {i}" for i in range(number))

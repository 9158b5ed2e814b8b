"""Build the paper's detectors by name."""

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
    """Build a detector with initial weights, in train mode. Its offset convolutions start at zero.

    ``architecture`` is ``faster_rcnn_r50_fpn`` or ``mask_rcnn_r50_fpn``, or either with r101. ``deformable`` gives
    version, stages and offset groups in MMDetection's notation: ``dconv_c3-c5``, ``mdconv_c3-c5_group4``; None for
    none. ``offset_mode`` is the part of the offsets that is used: ``full``, ``feature`` (d_f), ``kernel`` (d_k) or
    ``none``; modulation is always used. ``class_names`` sets the number of classes. To load torchvision's ImageNet
    weights, use ``detector.backbone.load_state_dict(resnet50(weights="DEFAULT").state_dict(), strict=False)``.

    Raises DeformscopeError for an unknown name.

    Example:
        >>> detector = build("faster_rcnn_r50_fpn", deformable="dconv_c5", class_names=("cat", "dog"))
        >>> detector.training, detector.class_names
        (True, ('cat', 'dog'))
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
    """COCO's names for 80 classes, otherwise numbers."""
    if number < 1:
        raise DeformscopeError(f"num_classes={number}: expected at least 1")
    return coco_class_names() if number == 80 else tuple(f"class {i}" for i in range(number))

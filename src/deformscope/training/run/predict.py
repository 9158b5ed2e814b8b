"""Detections on the photos of an evaluation, during training and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...capture.context_managers import placed
from ...detectors.detector import Detector
from ...metrics.coco import to_results
from ..recipe.recipe import Evaluation

MOST = 100
"""Detections per photo, as COCO evaluates them."""


def detections(
    detector: Detector, photos: Sequence[tuple[int, np.ndarray]], truth: dict[str, Any], settings: Evaluation
) -> list[dict[str, Any]]:
    """Detect on ``photos``, pairs of index into ``truth["images"]`` and RGB uint8 ``[h w 3]``.

    ``truth`` is in COCO's annotation format, the detections in its results format, with boxes in photo px. They are
    computed in float32 whatever the precision of the training, as for users.
    """
    device = next(detector.parameters()).device
    images, placements = detector.prepare([photo for _, photo in photos])
    with torch.inference_mode(), placed(placements), torch.autocast(device.type, enabled=False):
        found = detector.detect(
            images.to(device), placements, min_score=settings.score, nms=settings.nms, max_detections=MOST
        )
    categories = {category["name"]: category["id"] for category in truth["categories"]}
    results: list[dict[str, Any]] = []
    for (index, _), one in zip(photos, found, strict=True):
        wide = {key: value.float() if value.is_floating_point() else value for key, value in one.items()}
        results += to_results(wide, truth["images"][index]["id"], detector.class_names, categories)
    return results

"""Photos in, detections out: what every detector of deformscope shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..capture.recorder import placed
from ..errors import DeformscopeError
from ..fields.field import Placement
from ..photo import Photo, read

Detection = dict[str, Tensor]
"""torchvision's keys: ``boxes`` [d 4] xyxy, ``labels`` [d] 0-based, ``scores`` [d] and, where the detector has them,
``masks`` [d h w] (bool), all in the photo's own px. :meth:`Detector.detect` adds :data:`TRACES`."""

TRACES = ("logits", "iou_logits", "unclipped", "index", "region")
"""What a detection was before it was clipped and ranked, and where it came from: ``logits`` [d], log-odds of its class,
``iou_logits`` [d] of dense detectors' IoU branch and ``unclipped`` [d 4], its box in photo px, all differentiable;
``index`` [d] of the dense prediction, or ``region`` [d 4], xyxy in network px, into which a second stage looked."""


class Detector(nn.Module):
    """A network together with its own image preparation.

    A subclass says how photos become a batch (:meth:`prepare`) and a batch detections (:meth:`detect`).
    """

    name: str
    class_names: tuple[str, ...]

    def prepare(self, photos: Sequence[np.ndarray]) -> tuple[Tensor, list[Placement]]:
        """RGB uint8 ``[h w 3]`` arrays to the network's input ``[n 3 h w]`` and how each photo lies in it."""
        raise NotImplementedError

    def detect(
        self,
        batch: Tensor,
        placements: Sequence[Placement],
        *,
        min_score: float = 0.05,
        nms: float = 0.5,
        max_detections: int = 100,
    ) -> list[Detection]:
        """Detections in the photos' own px with their :data:`TRACES`, best first, as :meth:`forward` describes."""
        raise NotImplementedError

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        """What this pass makes of the cells or regions that ``found`` came from, row for row, nothing suppressed.

        ``batch`` is of one photo, ``[1 3 h w]``; ``found`` has ``labels`` and ``index`` or ``region``. Gives ``scores``
        and the differentiable :data:`TRACES`: the same detections after something was changed.
        """
        raise NotImplementedError

    def forward(
        self, photos: Photo | Sequence[Photo], *, min_score: float = 0.05, nms: float = 0.5, max_detections: int = 100
    ) -> list[Detection]:
        """Detect on one photo or a list of them (path, PIL image, uint8 HWC array or CHW tensor); always a list.

        At most ``max_detections`` that score above ``min_score`` are kept; of two boxes of a class whose IoU is above
        ``nms`` only the better one. No gradients; train or eval mode is left as it is (loaded detectors are in eval
        mode).
        """
        several: list[Any] = list(photos) if isinstance(photos, (list, tuple)) else [photos]
        if not several:
            raise DeformscopeError("photos=[]: expected at least one photo")
        if max_detections < 1 or not (0 <= min_score <= 1 and 0 <= nms <= 1):
            raise DeformscopeError(
                f"min_score={min_score}, nms={nms}, max_detections={max_detections}: "
                "expected two numbers from 0 to 1 and at least one detection"
            )
        with torch.inference_mode():
            batch, placements = self.prepare([read(photo) for photo in several])
            with placed(placements):
                batch = batch.to(next(self.parameters()).device)
                found = self.detect(batch, placements, min_score=min_score, nms=nms, max_detections=max_detections)
        with torch.inference_mode(False):
            return [{key: value.clone() for key, value in one.items() if key not in TRACES} for one in found]

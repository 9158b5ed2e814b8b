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
``masks`` [d h w] (bool), all in the photo's own px."""


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
        score: float = 0.05,
        nms: float = 0.5,
        most: int = 100,
    ) -> list[Detection]:
        """Detections in the photos' own px, best first, as :meth:`forward` describes its settings."""
        raise NotImplementedError

    def forward(
        self, photos: Photo | Sequence[Photo], *, score: float = 0.05, nms: float = 0.5, most: int = 100
    ) -> list[Detection]:
        """Detect on one photo or a list of them (path, PIL image, uint8 HWC array or CHW tensor); always a list.

        ``score`` is the least score, ``nms`` the IoU above which the lower of two boxes of a class is dropped, ``most``
        the number kept. No gradients; the network's mode is left as it is (loaded detectors are in eval mode).
        """
        several: list[Any] = list(photos) if isinstance(photos, (list, tuple)) else [photos]
        if not several:
            raise DeformscopeError("photos=[]: expected at least one photo")
        with torch.inference_mode():
            batch, placements = self.prepare([read(photo) for photo in several])
            with placed(placements):
                batch = batch.to(next(self.parameters()).device)
                found = self.detect(batch, placements, score=score, nms=nms, most=most)
        with torch.inference_mode(False):
            return [{key: value.clone() for key, value in one.items()} for one in found]

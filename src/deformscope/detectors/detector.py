"""The contract of every detector: photos in, detections out; a batch in, losses out; kept in a file and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..capture.recorder import placed
from ..errors import DeformscopeError
from ..fields.field import Placement
from ..files import write_tensors
from ..photo import Photo, read
from .batch import Batch

Detection = dict[str, Tensor]
"""torchvision's keys: ``boxes`` [d 4] xyxy, ``labels`` [d] 0-based, ``scores`` [d] and, where the detector has them,
``masks`` [d h w] (bool), all in the photo's own px. :meth:`Detector.detect` adds :data:`TRACES`."""

TRACES = ("logits", "iou_logits", "unclipped", "index", "region")
"""What a detection was before it was clipped and ranked, and where it came from: ``logits`` [d], log-odds of its class,
``iou_logits`` [d] of dense detectors' IoU branch and ``unclipped`` [d 4], its box in photo px, all differentiable;
``index`` [d] of the dense prediction, or ``region`` [d 4], xyxy in network px, into which a second stage looked."""


class Detector(nn.Module):
    """A network together with its own image preparation, losses and configuration.

    All that the rest of the package needs of a detector is here, so that nobody has to ask for its class. A subclass
    says how photos become a batch (:meth:`prepare`), a batch detections (:meth:`detect`) and losses (:meth:`losses`),
    and how published weights go into its trunk (:meth:`load_trunk`).
    """

    kind: ClassVar[str]
    """Its name in the files that :meth:`save` writes."""
    saved_dtype: ClassVar[torch.dtype] = torch.float32
    """Of the weights in these files, unless another is asked for."""
    name: str
    class_names: tuple[str, ...]
    config: Any
    """A frozen dataclass of plain values, from which the same network can be built."""
    trunk: nn.Module | None
    """The module that sees the images first, where a :class:`.batch.Batch` may hold its maps (by name) instead."""
    has_masks: bool
    """Detections have masks, and targets need them."""
    torchvision_trunk: str | None = None
    """torchvision's name of a classifier whose weights :meth:`load_trunk` takes."""

    def prepare(self, photos: Sequence[np.ndarray], shorter_side: int | None = None) -> tuple[Tensor, list[Placement]]:
        """RGB uint8 ``[h w 3]`` arrays to the network's input ``[n 3 h w]`` and how each photo lies in it.

        ``shorter_side`` is that to which photos are resized, px; None: the configuration's.
        """
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

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a training batch by name (``loss_…``); their sum trains.

        Where several processes train together, the mean of their gradients is that of one process on all photos.
        """
        raise NotImplementedError

    def load_trunk(self, weights: Mapping[str, Tensor]) -> None:
        """Put published weights into the trunk. Raises DeformscopeError where they do not fit."""
        raise DeformscopeError(f"the trunk of a {self.kind} detector is its own, for which nobody published weights")

    @property
    def head_sizes(self) -> dict[str, tuple[float, float]]:
        """Modules that predict objects of certain sizes only, and these: √area from and up to, network px."""
        return {}

    def set_task_gradient(self, share: float) -> None:
        """What of the boxes' gradient flows into the offsets, where boxes are decoded from these."""

    def resize_to(self, shorter_side: int | None = None, longer_side: int | None = None) -> None:
        """Resize photos to other sides from now on, px; None leaves a side as it is."""
        self.config = self.config.resized_to(shorter_side, longer_side)

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write a safetensors file that :func:`deformscope.load` takes: weights (as ``dtype``) and configuration.

        The file appears whole or not at all.
        """
        tensors = {
            key: value.detach().cpu().to(dtype or self.saved_dtype, copy=True).contiguous()
            for key, value in self.state_dict().items()
            if value.is_floating_point()  # batch counters say nothing once the statistics are frozen
        }
        write_tensors(Path(path), tensors, {"architecture": self.kind, "config": json.dumps(asdict(self.config))})

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

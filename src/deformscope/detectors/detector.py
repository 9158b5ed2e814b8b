"""The interfaces of detectors: what looks (photos to detections), and what learns (batches to losses, files)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from ..errors import DeformscopeError
from ..fields.places import Placement
from ..files import sha256, write_tensors
from ..photo import Photo, as_rgb
from ..recording.capture import placed

Detection = dict[str, Tensor]
"""torchvision's keys: ``boxes`` [d 4] xyxy, ``labels`` [d] 0-based, ``scores`` [d] and, for detectors with masks,
``masks`` [d h w] (bool), all in photo px. :meth:`Detector.detect` adds :data:`TRACES`."""

TRACES = ("logits", "iou_logits", "unclipped", "index", "region")
"""Where a detection came from, before clipping and ranking: ``logits`` [d], log-odds of its class, ``iou_logits`` [d]
of the dense detectors' IoU branch and ``unclipped`` [d 4], its box in photo px, all differentiable; ``index`` [d] of
the dense prediction, or ``region`` [d 4], xyxy in network px, from which the second stage made it."""


class Source:
    """The file of a detector's weights, whose sha256 is computed when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self._state = path, _state(path)

    @cached_property
    def sha256(self) -> str | None:
        """Hexadecimal; None where the file has changed since the detector was loaded."""
        try:
            return sha256(self.path) if _state(self.path) == self._state else None
        except OSError:
            return None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


class Detector(nn.Module):
    """A network that detects, with its image preparation. Subclasses implement :meth:`prepare` (photos to a batch),
    :meth:`detect` and :meth:`repredict`.

    No other code depends on a detector's class.

    Example:
        >>> found = detector("photo.jpg", min_score=0.5)[0]
        >>> detector.class_names[found["labels"][0]]
        'cat'
    """

    name: str
    class_names: tuple[str, ...]
    has_masks: bool = False
    """Detections have masks, and so must the targets. Where masks are learned from boxes alone, it is False."""
    source: Source | None = None
    """The file that the detector was loaded from."""

    def prepare(self, photos: Sequence[np.ndarray], shorter_side: int | None = None) -> tuple[Tensor, list[Placement]]:
        """Convert RGB uint8 photos ``[h w 3]`` to the network's input ``[n 3 h w]``; also returns how each photo lies
        in it.

        ``shorter_side`` is the length of the photos' shorter side in the input, px; None for the configuration's.
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
        """Detect: results in photo px with their :data:`TRACES`, best first, as described in :meth:`forward`."""
        raise NotImplementedError

    def repredict(self, batch: Tensor, placement: Placement, found: Detection) -> Detection:
        """Predict again for the cells or regions of the detections ``found``, row by row, without suppression.

        ``batch`` holds one photo, ``[1 3 h w]``; ``found`` has ``labels`` and ``index`` or ``region``. Returns
        ``scores`` and the differentiable :data:`TRACES`: the same detections after something was changed.
        """
        raise NotImplementedError

    def check_explainable(self) -> None:
        """Raise DeformscopeError for a detector whose detections have no :data:`TRACES`."""

    @property
    def weights_sha256(self) -> str | None:
        """Hexadecimal sha256 of the file that the detector was loaded from; None if there is none, or it has changed.

        Changes of the weights since loading do not change it.
        """
        return None if self.source is None else self.source.sha256

    def forward(
        self, photos: Photo | Sequence[Photo], *, min_score: float = 0.05, nms: float = 0.5, max_detections: int = 100
    ) -> list[Detection]:
        """Detect on a photo or a list of photos (path, PIL image, uint8 HWC array or CHW tensor); returns a list.

        Keeps at most ``max_detections`` with scores above ``min_score``; of two boxes of a class with an IoU above
        ``nms``, only the better one. Computes no gradients and does not change train or eval mode (loaded detectors are
        in eval mode).
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
            batch, placements = self.prepare([as_rgb(photo) for photo in several])
            with placed(placements):
                batch = batch.to(next(self.parameters()).device)
                found = self.detect(batch, placements, min_score=min_score, nms=nms, max_detections=max_detections)
        with torch.inference_mode(False):
            return [{key: value.clone() for key, value in one.items() if key not in TRACES} for one in found]


class TrainableDetector(Detector):
    """A detector that can be trained, saved and resized. Subclasses also implement :meth:`losses` and
    :meth:`load_trunk`.

    Example:
        >>> detector = ds.load("packaged")
        >>> detector.resize_to(shorter_side=320, longer_side=512)
        >>> detector.save("larger.safetensors")
        >>> ds.load("larger.safetensors").config.shorter_side
        320
    """

    kind: ClassVar[str]
    """The architecture's name in files of :meth:`save`."""
    saved_dtype: ClassVar[torch.dtype] = torch.float32
    """Default dtype of weights in these files."""
    config: Any
    """A frozen dataclass of plain values from which the network can be built again."""
    trunk: nn.Module | None
    """The backbone of a dense detector, which gives feature maps by name."""
    torchvision_trunk: str | None = None
    """torchvision's name of the classifier whose weights :meth:`load_trunk` takes."""

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a training batch by name (``loss_…``), to be summed.

        With several processes, the mean of their gradients is that of one process with all photos.
        """
        raise NotImplementedError

    def load_trunk(self, weights: Mapping[str, Tensor]) -> None:
        """Load published weights into the trunk. Raises DeformscopeError if they do not fit."""
        raise DeformscopeError(f"the trunk of a {self.kind} detector is its own, for which nobody published weights")

    @property
    def frozen_trunk(self) -> nn.Module | None:
        """The part of the network from images to the feature maps (by name) that a :class:`.batch.Batch` can hold
        instead of images; nothing in it is trained. None if there is no such part."""
        return None

    @property
    def head_sizes(self) -> dict[str, tuple[float, float]]:
        """Modules that predict only objects of some sizes, with their range of √area, network px."""
        return {}

    def set_task_gradient(self, share: float) -> None:
        """Set the factor on the boxes' gradient into the offsets, where boxes are decoded from offsets."""

    def resize_to(self, shorter_side: int | None = None, longer_side: int | None = None) -> None:
        """Change the sides to which photos are resized, px; None keeps the present one."""
        self.config = self.config.resized_to(shorter_side, longer_side)

    def save(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Save the weights (as ``dtype``) and the configuration to a safetensors file for :func:`deformscope.load`.

        The file appears whole or not at all.
        """
        tensors = {
            key: value.detach().cpu().to(dtype or self.saved_dtype, copy=True).contiguous()
            for key, value in self.state_dict().items()
            if value.is_floating_point()  # counters of batches are not needed, since the statistics are frozen
        }
        write_tensors(Path(path), tensors, {"architecture": self.kind, "config": json.dumps(asdict(self.config))})


def processes() -> int:
    """The number of processes that train together."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def mean_of_processes(value: Tensor) -> Tensor:
    """The mean of a value over the processes that train together."""
    if processes() == 1:
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / processes()


@dataclass(frozen=True)
class Batch:
    """A batch for :meth:`TrainableDetector.losses`: either ``images`` (with ``placements``) or ``maps``.

    Example:
        >>> images, placements = detector.prepare([photo])
        >>> object = {"boxes": torch.tensor([[10.0, 5.0, 300.0, 250.0]]), "labels": torch.tensor([7])}
        >>> losses = detector.losses(Batch([object], images, tuple(placements)))
        >>> total = sum(losses.values())
    """

    targets: list[dict[str, Tensor]]
    """One dictionary per image, in network px: ``boxes`` [t 4] xyxy, ``labels`` [t] 0-based and, optionally, ``ignore``
    (bool [t]; neither objects nor background) and ``masks`` (bool [t h w])."""
    images: Float[Tensor, "n 3 h w"] | None = None
    placements: tuple[Placement, ...] = ()
    maps: dict[str, Tensor] | None = None
    """Feature maps of the detector's :attr:`~TrainableDetector.frozen_trunk` by name [n c h w], instead of images."""

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        return self._moved(lambda tensor: tensor.pin_memory())

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            [{key: move(value) for key, value in one.items()} for one in self.targets],
            None if self.images is None else move(self.images),
            self.placements,
            None if self.maps is None else {key: move(value) for key, value in self.maps.items()},
        )

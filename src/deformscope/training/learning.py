"""The training as a Lightning module: losses, parameter groups, schedules, evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from ..detectors.deform import DeformConv
from ..detectors.detector import Batch, Detector, TrainableDetector, processes
from ..metrics.coco import scores, to_results
from ..recording.capture import placed
from .networks import targets
from .recipe import Evaluation, Optimiser, Recipe
from .sources import Source
from .supervision import OffsetSupervision

MOST = 100
"""Detections per photo, as COCO evaluates them."""
TRUNK = re.compile(r"\.(trunk|backbone)\.")
"""In the names of the trunk's parameters, in dense and in R-CNN detectors."""


class Learning(lightning.LightningModule):
    """A network trained by a recipe. ``scores`` holds the result of the last evaluation."""

    def __init__(
        self, recipe: Recipe, detector: TrainableDetector, val: Source, supervision: OffsetSupervision | None = None
    ) -> None:
        super().__init__()
        self.recipe, self.detector = recipe, detector
        self.scores: dict[str, float | None] = {}
        self.scored_at = -1
        """The step of the last evaluation."""
        self.detections: list[dict[str, Any]] = []
        """Detections of the last evaluation, in COCO's results format."""
        self._val = val
        self._penalty = OffsetPenalty(detector) if recipe.optimiser.offset_penalty else None
        self._results: list[dict[str, Any]] = []
        self._supervision = supervision
        if supervision is not None and supervision.side_branches:
            self.side_branches = supervision.side_branches  # learn too

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step's random draws by its number, so that a resumed run draws the same."""
        sequence = np.random.SeedSequence((self.recipe.run.seed, self.global_step, self.global_rank))
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0]) >> 1)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The total loss, and its parts for the log."""
        with self._supervision or nullcontext():
            parts = self.detector.losses(batch)
        if self._supervision is not None:
            told = targets(batch.targets, self._shuffled)
            parts["loss_supervision"] = self._supervision.loss(told, self.global_step)
        if self._penalty is not None:
            parts["loss_offset"] = self.recipe.optimiser.offset_penalty * self._penalty.take()
        total = torch.stack(list(parts.values())).sum()
        detached = {name: value.detach() for name, value in parts.items()}
        self.log("loss", total.detach(), prog_bar=True, logger=False, batch_size=len(batch.targets))
        return {"loss": total, **detached}

    def on_validation_epoch_start(self) -> None:
        """Begin a new list of detections."""
        self._results = []

    def validation_step(self, batch: list[tuple[int, np.ndarray]], batch_idx: int) -> None:
        """Detect on photos of the validation split."""
        self._results += detections(self.detector, batch, self._truth, self.recipe.evaluation)

    def on_validation_epoch_end(self) -> None:
        """Average precision over the detections of all processes, logged as ``val/ap`` and so on."""
        self.detections, settings = _gathered(self._results), self.recipe.evaluation
        self.scores = scores(self._truth, self.detections, settings.classes, settings.photos)
        self.scored_at = self.global_step
        for name in ("ap", "ap50", "mask_ap"):
            if name in self.scores:
                self.log(f"val/{name}", self.scores[name] or 0.0, prog_bar=name == "ap", rank_zero_only=False)
        self._results = []

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and its schedule, which is updated in every step."""
        settings, steps = self.recipe.optimiser, self.recipe.run.steps
        groups = [
            {"params": parameters, "lr": settings.lr * factor}
            for parameters, factor in parameter_groups(self, settings.offset_lr, settings.trunk_lr)
        ]
        optimiser: torch.optim.Optimizer
        if settings.kind == "sgd":
            optimiser = torch.optim.SGD(groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay)
        else:
            optimiser = torch.optim.AdamW(groups, settings.lr, weight_decay=settings.weight_decay)
        schedule = _schedule(optimiser, settings, steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def _shuffled(self) -> bool:
        settings = self.recipe.optimiser.offset_supervision
        return settings is not None and settings.targets == "shuffled"

    @property
    def _truth(self) -> dict[str, Any]:
        if not hasattr(self, "_kept_truth"):
            self._kept_truth = self._val.truth()
        return self._kept_truth


def parameter_groups(
    network: nn.Module, offset_lr: float, trunk_lr: float = 1.0
) -> Iterator[tuple[list[nn.Parameter], float]]:
    """The parameters that are trained, in up to three groups, with the learning-rate multiplier of each.

    The offset convolutions are the second group, if there are any. With a rate of its own the rest of the trunk is the
    last.
    """
    learning = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    offset = [parameter for name, parameter in learning if ".conv_offset." in f".{name}"]
    others = [(name, parameter) for name, parameter in learning if ".conv_offset." not in f".{name}"]
    in_trunk = [name for name, _ in others if TRUNK.search(f".{name}")] if trunk_lr != 1 else []
    yield [parameter for name, parameter in others if name not in in_trunk], 1.0
    if offset:
        yield offset, offset_lr
    if in_trunk:
        yield [parameter for name, parameter in others if name in in_trunk], trunk_lr


def rate(settings: Optimiser, step: int) -> float:
    """The factor on the learning rate at ``step``, for ``constant`` and ``multi_step``, with linear warm-up."""
    passed = sum(step >= milestone for milestone in settings.milestones) if settings.schedule == "multi_step" else 0
    if step < settings.warmup:
        share = settings.warmup_start + (1 - settings.warmup_start) * step / settings.warmup
    else:
        share = 1.0
    return share * settings.gamma**passed


def _schedule(optimiser: torch.optim.Optimizer, settings: Optimiser, steps: int) -> LRScheduler:
    if settings.schedule == "one_cycle":
        return OneCycleLR(
            optimiser,
            [group["lr"] for group in optimiser.param_groups],
            steps,
            pct_start=settings.warmup / steps,
            div_factor=1 / max(settings.warmup_start, 1e-8),
            # Constant momentum, so that schedules can be compared.
            cycle_momentum=False,
        )
    return LambdaLR(optimiser, lambda step: rate(settings, step))


def _gathered(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if processes() == 1:
        return results
    parts: list[Any] = [None] * processes()
    distributed.all_gather_object(parts, results)
    return [one for part in parts for one in part]


class OffsetPenalty:
    """The mean square of the offsets of all deformable convolutions of ``network``, of each pass with gradients.

    No other loss limits offsets. In long training with Adam, the offsets of whole layers drift by a constant that does
    not change the predictions, and overfit to the training photos; the field then no longer shows where objects are.
    """

    def __init__(self, network: nn.Module) -> None:
        self._seen: list[Tensor] = []
        self._parameter = next(network.parameters())
        for module in network.modules():
            if isinstance(module, DeformConv) and module.offset_mode != "none":
                points = module.conv_offset.out_channels // (3 if module.modulated else 2)
                module.conv_offset.register_forward_hook(lambda conv, _, out, points=points: self._see(out, 2 * points))

    def take(self) -> Tensor:
        """The mean square (cells²) of the offsets since the last call, summed over layers; zero without layers."""
        seen, self._seen = self._seen, []
        squares = [offset.float().square().mean() for offset in seen]
        return torch.stack(squares).sum() if squares else self._parameter.new_zeros(())

    def _see(self, out: Tensor, channels: int) -> None:
        if torch.is_grad_enabled():
            self._seen.append(out[:, :channels])


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

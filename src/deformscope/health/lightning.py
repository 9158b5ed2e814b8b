"""A Lightning callback that logs offsets and figures during training. Requires Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ..photo import Photo
from .log_offsets import log_offsets


class OffsetWatch(Callback):
    """Log the offsets of a model on fixed photos before the first step and after every ``every`` steps.

    ``model`` returns the network of the LightningModule, if it is not the module itself; ``forward`` runs it on one
    photo, if it is not one of deformscope's detectors. :func:`deformscope.health.log_offsets.log_offsets` describes
    what is logged, to all loggers of the trainer, by the first process only.

    Example:
        >>> watch = OffsetWatch(["photo.jpg"], every=500, model=lambda module: module.detector)
        >>> trainer = Trainer(callbacks=[watch])
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        every: int = 500,
        *,
        model: Callable[[LightningModule], nn.Module] | None = None,
        forward: Callable[[Any], Any] | None = None,
        figures: bool = True,
    ) -> None:
        self.photos, self.every, self.figures = list(photos), every, figures
        self.model, self.forward = model or (lambda module: module), forward
        self.logged = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log at the start, where offsets are usually zero."""
        self._log(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log after a batch, if the number of optimizer steps is due."""
        if trainer.global_step % self.every == 0:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # With accumulated gradients, a step has several batches.
        if not trainer.is_global_zero or trainer.global_step == self.logged:
            return
        self.logged = trainer.global_step
        for logger in trainer.loggers:
            log_offsets(
                logger,
                self.model(pl_module),
                self.photos,
                trainer.global_step,
                forward=self.forward,
                figures=self.figures,
            )

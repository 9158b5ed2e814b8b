"""Supervision of offsets as a Lightning callback; needs Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from .supervision import OffsetSupervision
from .targets import Target


class SuperviseOffsets(Callback):
    """Adds :meth:`.OffsetSupervision.loss` to the loss of every training step, without a change to the module.

        supervision = OffsetSupervision(module.model, images[:1], ["*layer4*"])
        Trainer(callbacks=[SuperviseOffsets(supervision, lambda batch: [t["boxes"] for t in batch[1]])])

    ``targets`` takes them out of a batch. The weight's step is the trainer's, so that a resumed run goes on with it.
    Logged as ``loss_offset``. For automatic optimization; a step that returns no loss is left alone. Supervision with a
    side branch has parameters of its own, which a callback cannot give to the optimiser.
    """

    def __init__(self, supervision: OffsetSupervision, targets: Callable[[Any], Sequence[Target]]) -> None:
        self.supervision, self.targets = supervision, targets
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin to see."""
        self._batch = batch
        self.supervision.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add to the loss, in place: one backward pass, as DistributedDataParallel wants it."""
        self._close()
        extra = self.supervision.loss(self.targets(self._batch), trainer.global_step)
        pl_module.log("loss_offset", extra.detach(), batch_size=len(self.targets(self._batch)))
        extra = extra / trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss.add_((extra if scaler is None else scaler.scale(extra)).to(loss))

    def on_train_batch_end(self, *_: Any) -> None:
        """See no more, also where there was no loss."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """See no more."""
        self._close()

    def _close(self) -> None:
        self.supervision.__exit__(None, None, None)

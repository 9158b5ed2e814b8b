"""Supervision of offsets as a Lightning callback. Requires Lightning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from .supervision import OffsetSupervision
from .targets import Target


class SuperviseOffsets(Callback):
    """Add :meth:`.OffsetSupervision.loss` to the loss of every training step, without a change to the module.

    ``targets`` returns the targets of a batch. The step of the weight is the trainer's, so that a resumed run continues
    with it. The loss is logged as ``loss_offset``. For automatic optimization; a step that returns no loss is
    unchanged. Supervision with a side branch has its own parameters, which a callback cannot add to the optimiser.

    Example:
        >>> supervision = OffsetSupervision(model, images[:1], ["*layer4*"])
        >>> callback = SuperviseOffsets(supervision, lambda batch: [t["boxes"] for t in batch[1]])
        >>> trainer = Trainer(callbacks=[callback], logger=False)
    """

    def __init__(self, supervision: OffsetSupervision, targets: Callable[[Any], Sequence[Target]]) -> None:
        self.supervision, self.targets = supervision, targets
        self._batch: Any = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start recording."""
        self._batch = batch
        self.supervision.__enter__()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the loss, in place, so that there is one backward pass, as DistributedDataParallel needs."""
        self._close()
        extra = self.supervision.loss(self.targets(self._batch), trainer.global_step)
        pl_module.log("loss_offset", extra.detach(), batch_size=len(self.targets(self._batch)))
        extra = extra / trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        loss.add_((extra if scaler is None else scaler.scale(extra)).to(loss))

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop recording, also if there was no loss."""
        self._close()

    def on_exception(self, *_: Any) -> None:
        """Stop recording."""
        self._close()

    def _close(self) -> None:
        self.supervision.__exit__(None, None, None)

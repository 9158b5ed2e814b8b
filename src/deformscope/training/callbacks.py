"""Lightning callbacks: supervision of offsets in any training, and what a run saves, logs and shows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ..detectors.detector import mean_of_processes
from ..files import whole_file, write_text
from ..terminal.progress import ProgressBar
from .offset_losses import Target
from .supervision import OffsetSupervision

LOG = "log.jsonl"


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that are written to a temporary file and then moved, so that a kill leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write and move. (Lightning writes below /tmp, and moving from another file system is copying.)"""
        with whole_file(path, durable=True) as beside:
            torch.save(checkpoint, beside)


class LossLog(Callback):
    """Write ``log.jsonl``: one line every ``every`` steps with the means of the losses since the line before.

    Means are over all processes. A line also has the norm of the gradients before clipping, the learning rate and the
    seconds spent. The state is saved in checkpoints, and lines after the checkpoint are dropped on resuming, so that
    the file is that of an uninterrupted run.
    """

    def __init__(self, folder: Path, every: int, steps: int) -> None:
        self.path, self.every, self.steps = folder / LOG, every, steps
        self.seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._norm: Tensor | None = None
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The sums since the last line, and the seconds."""
        sums = {name: value.item() for name, value in self._sums.items()}
        return {"sums": sums, "count": self._count, "seconds": self.seconds + time.monotonic() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sums and the seconds."""
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state_dict["sums"].items()}
        self._count, self.seconds = state_dict["count"], state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop lines after the checkpoint from which the run resumes."""
        self._began = time.monotonic()
        if trainer.is_global_zero and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= trainer.global_step]
            write_text(self.path, "".join(kept))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the norm of the gradients in steps that are logged."""
        if self._due(trainer.global_step + 1):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = torch.stack([gradient.norm() for gradient in gradients]).norm()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Add the losses; write a line when one is due."""
        for name, value in outputs.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
        self._count += 1
        if not self._due(trainer.global_step):
            return
        means = {name: mean_of_processes(value / self._count).item() for name, value in self._sums.items()}
        means |= {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        if self._norm is not None:
            means["grad_norm"] = self._norm.item()
        self._sums, self._count = {}, 0
        if trainer.is_global_zero:
            spent = round(self.seconds + time.monotonic() - self._began, 2)
            with self.path.open("a") as file:
                file.write(json.dumps({"step": trainer.global_step, **means, "seconds": spent}) + "\n")
        if trainer.logger is not None:
            trainer.logger.log_metrics(means, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the time since the start."""
        self.seconds += time.monotonic() - self._began

    def _due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps


class Snapshots(Callback):
    """Save the detector after chosen steps as ``step-N.safetensors``, for :func:`deformscope.load`."""

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], None]) -> None:
        self.folder, self.steps, self.save = folder, frozenset(steps), save

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Save the detector if this step was chosen; here that of step 0."""
        path = self.folder / f"step-{trainer.global_step}.safetensors"
        if trainer.global_step in self.steps and trainer.is_global_zero and not path.exists():
            self.save(path)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The same after every step."""
        self.on_train_start(trainer)


class StepBar(Callback):
    """A progress bar in steps, with the loss, on stderr; only if that is a terminal."""

    def __init__(self, label: str, steps: int) -> None:
        self._bar = ProgressBar(label, steps)
        self._label = label

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Advance the bar; update the loss every 20 steps."""
        shown = f"{self._label} loss {outputs['loss'].item():.3f}" if trainer.global_step % 20 == 0 else None
        self._bar.update(trainer.global_step, label=shown)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the AP."""
        score = trainer.callback_metrics.get("val/ap")
        if score is not None:
            self._label = f"{self._label.split(' AP')[0]} AP {float(score):.1f}"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the bar, also after an error."""
        self._bar.stop()


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

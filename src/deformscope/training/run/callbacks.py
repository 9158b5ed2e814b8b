"""What a run writes while it learns: its loss curve, and checkpoints that are whole or not there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as distributed
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ...files import whole_file, write_text
from ...terminal.progress import ProgressBar

LOG = "log.jsonl"


class WholeCheckpoints(TorchCheckpointIO):
    """Written beside their place and then moved there: a kill at any moment leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write and move. Lightning's own writes below /tmp, from where moving is copying."""
        with whole_file(path, durable=True) as beside:
            torch.save(checkpoint, beside)


class LossLog(lightning.Callback):
    """``log.jsonl``: every ``every`` steps a line with the means of the losses since the last, over all processes.

    The line also has the gradients' norm before clipping, the learning rate and the seconds spent. Its state is in the
    checkpoint, and lines beyond a checkpoint are dropped when the run goes on from it: the file is the one that an
    unbroken run writes.
    """

    def __init__(self, folder: Path, every: int, steps: int) -> None:
        self.path, self.every, self.steps = folder / LOG, every, steps
        self.seconds = 0.0
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._norm: Tensor | None = None
        self._began = 0.0

    def state_dict(self) -> dict[str, Any]:
        """What is summed up so far."""
        sums = {name: value.item() for name, value in self._sums.items()}
        return {"sums": sums, "count": self._count, "seconds": self.seconds + time.monotonic() - self._began}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._sums = {name: torch.tensor(value, dtype=torch.float64) for name, value in state_dict["sums"].items()}
        self._count, self.seconds = state_dict["count"], state_dict["seconds"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Drop what a broken run logged beyond its checkpoint."""
        self._began = time.monotonic()
        if trainer.is_global_zero and self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= trainer.global_step]
            write_text(self.path, "".join(kept))

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Note the gradients' norm of the steps that are logged."""
        if self._due(trainer.global_step + 1):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            self._norm = torch.stack([gradient.norm() for gradient in gradients]).norm()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Sum up, and write when a line is due."""
        for name, value in outputs.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value
        self._count += 1
        if not self._due(trainer.global_step):
            return
        means = {name: _mean_of_processes(value / self._count).item() for name, value in self._sums.items()}
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

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock."""
        self.seconds += time.monotonic() - self._began

    def _due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.steps


class Snapshots(lightning.Callback):
    """The detector as it was after some steps, each in a file that :func:`deformscope.load` takes."""

    def __init__(self, folder: Path, steps: Sequence[int], save: Callable[[Path], None]) -> None:
        self.folder, self.steps, self.save = folder, frozenset(steps), save

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the detector as it begins."""
        self._keep(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Keep it where its step is one of those."""
        self._keep(trainer)

    def _keep(self, trainer: lightning.Trainer) -> None:
        path = self.folder / f"step-{trainer.global_step}.safetensors"
        if trainer.global_step in self.steps and trainer.is_global_zero and not path.exists():
            self.save(path)


def _mean_of_processes(value: Tensor) -> Tensor:
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return value
    value = value.clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


class StepBar(lightning.Callback):
    """A progress bar in steps on stderr, where that is a terminal, with the last logged loss."""

    def __init__(self, label: str, steps: int) -> None:
        self._bar = ProgressBar(label, steps)
        self._label = label

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show it."""
        if trainer.is_global_zero:
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """A step further."""
        shown = f"{self._label} loss {outputs['loss'].item():.3f}" if trainer.global_step % 20 == 0 else None
        self._bar.update(trainer.global_step, label=shown)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the AP."""
        score = trainer.callback_metrics.get("val/ap")
        if score is not None:
            self._label = f"{self._label.split(' AP')[0]} AP {float(score):.1f}"

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Leave the terminal in order, also after an error."""
        self._bar.stop()

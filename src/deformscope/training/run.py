"""A training run in a folder: start it, resume it, or return its result.

The folder holds ``recipe.json``, ``log.jsonl``, ``last.ckpt``, ``best.ckpt`` if the run is evaluated on the way,
``tensorboard/`` and, at the end, ``result.json``, ``detections.json`` (on the validation photos) and
``detector.safetensors``, for :func:`deformscope.load`.
"""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from ..detectors.detector import TrainableDetector
from ..errors import DeformscopeError
from ..files import claimed_folder, write_json
from . import networks
from .callbacks import LossLog, Snapshots, StepBar, WholeCheckpoints
from .datamodule import RecipeData, evaluated, source
from .learning import Learning
from .recipe import Recipe
from .run_folder import DETECTIONS, DETECTOR, LAST, RESULT, Result, claim, hardware, kept_recipe, result, state

PRECISIONS: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def train(recipe: Recipe, folder: Path, *, progress: bool = True) -> Result:
    """Train as ``recipe`` says; resume an interrupted run in ``folder``, or return the result of a finished one.

    ``progress`` shows a bar on stderr. Raises DeformscopeError when the folder holds the run of another recipe, or the
    recipe does not fit its data or this machine.
    """
    busy = f"{folder}: another command is training here; wait for it, or stop it"
    # Of several processes the first holds the lock.
    with claimed_folder(folder, None if getattr(rank_zero_only, "rank", 0) else busy):
        done = result(folder, recipe)
        return done if done is not None else _train(recipe, folder, progress)


def _train(recipe: Recipe, folder: Path, progress: bool) -> Result:
    train_source, val_source = source(recipe, "train"), source(recipe, "val")
    if train_source.names != val_source.names:
        raise DeformscopeError(
            f"data: the classes of {recipe.data.train!r} and {recipe.data.val!r} differ; use two splits of one data set"
        )
    evaluated(recipe, val_source)  # raises for unknown classes before the training, not after it
    _warn_of_slow_halves(recipe)
    detector = networks.build(recipe, train_source.names)
    learning = Learning(recipe, detector, val_source, networks.supervised(recipe, detector, train_source))
    data = RecipeData(recipe, detector, train_source, val_source)
    log = LossLog(folder, recipe.run.log_every, recipe.run.steps)
    last = folder / LAST
    begun = state(last) if last.exists() else None
    with warnings.catch_warnings(), _quiet():
        # These recommend worker processes even for small data, and a reduction of metrics that is done by hand here.
        warnings.filterwarnings("ignore", module="lightning")
        kept = Snapshots(folder, recipe.run.snapshots, detector.save)
        trainer = _trainer(recipe, folder, [log, kept], progress, 0 if begun is None else begun["global_step"])
        # Not before: a recipe that does not fit its data or this machine would keep the folder from the corrected one.
        claim(recipe, folder)
        if begun is not None and begun["global_step"] >= recipe.run.steps:
            learning.load_state_dict(begun["state_dict"])
            log.seconds = next(v["seconds"] for v in begun["callbacks"].values() if "seconds" in v)
        else:
            trainer.fit(learning, datamodule=data, ckpt_path=None if begun is None else str(last), weights_only=True)
        if learning.scored_at != recipe.run.steps:
            trainer.validate(learning, datamodule=data, verbose=False)
    found = Result(
        recipe.name,
        recipe.fingerprint,
        recipe.network.offset_mode,
        recipe.run.seed,
        recipe.run.steps,
        round(log.seconds, 1),
        hardware(),
        learning.scores,
    )
    if trainer.is_global_zero:
        detector.save(folder / DETECTOR)
        write_json(folder / DETECTIONS, learning.detections, indent=None)
        write_json(folder / RESULT, asdict(found))
    trainer.strategy.barrier()
    return found


def _warn_of_slow_halves(recipe: Recipe) -> None:
    """Warn when the CPU emulates bf16, which took twelve times as long as float32."""
    if recipe.run.precision != "bf16" or not (recipe.run.accelerator == "cpu" or not torch.cuda.is_available()):
        return
    # There is no public function for this. Only x86 processors are known to be slow.
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if known is not None and platform.machine() in ("x86_64", "AMD64") and not known():
        warnings.warn(
            "run.precision: 'bf16' on a CPU without AVX-512 BF16, several times slower than float32; "
            "set run.precision=32",
            stacklevel=4,
        )


def load(folder: Path) -> tuple[Recipe, TrainableDetector]:
    """The recipe of a run, and its network in eval mode with the last saved weights (with ``run.ema``, averaged)."""
    recipe = kept_recipe(folder)
    detector = networks.build(recipe, source(recipe, "val").names)
    weights = state(folder / LAST)["state_dict"]
    own = {key.removeprefix("detector."): value for key, value in weights.items() if key.startswith("detector.")}
    detector.load_state_dict(own)
    return recipe, detector.eval()


def _trainer(
    recipe: Recipe, folder: Path, watching: Sequence[Callback], progress: bool, step: int
) -> lightning.Trainer:
    run = recipe.run
    # Lightning resumes exactly only at the ends of epochs, so an epoch here is what lies between two checkpoints.
    epochs = -(-run.steps // run.checkpoint_every)
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks: list[Callback] = [*watching, last]
    if run.evaluate_every:
        callbacks.append(
            ModelCheckpoint(
                folder,
                "best",
                monitor="val/ap",
                mode="max",
                enable_version_counter=False,
                save_on_train_epoch_end=False,
                save_weights_only=True,
            )
        )
    if progress:
        label = f"{recipe.name} {recipe.network.offset_mode} seed {run.seed}"
        callbacks.append(StepBar(label, run.steps))
    if run.ema is not None:
        callbacks.append(EMAWeightAveraging(decay=run.ema))
    try:
        return lightning.Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            num_nodes=run.nodes,
            strategy="auto" if run.devices * run.nodes == 1 else "ddp",
            precision=PRECISIONS[run.precision],
            max_steps=run.steps,
            max_epochs=-1,
            check_val_every_n_epoch=run.evaluate_every // run.checkpoint_every if run.evaluate_every else epochs + 1,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            gradient_clip_val=recipe.optimiser.grad_clip_norm,
            logger=TensorBoardLogger(folder, name="", version="tensorboard", purge_step=step or None),
            callbacks=callbacks,
            plugins=[WholeCheckpoints()],
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=run.log_every,
            default_root_dir=folder,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DeformscopeError(
            f"run.accelerator: {run.accelerator!r}, run.devices: {run.devices}, run.precision: {run.precision!r}; "
            f"this machine has no such hardware ({reason})"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress Lightning's messages about hardware."""
    levels = {logging.getLogger(f"lightning.{name}"): 0 for name in ("pytorch", "fabric")}
    for logger in levels:
        levels[logger] = logger.level
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)

"""What a run begins with, and where it can go on from."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_rag.methods.base import as_method
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)


def save_checkpoint(trainer: Trainer, path: Path, *, resumable: bool) -> None:
    """Write a checkpoint beside `path` and rename it: a kill leaves the old one whole.

    Args:
        trainer: whose state is written.
        path: the file.
        resumable: with the optimiser and the callbacks; else the weights alone.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    trainer.save_checkpoint(temporary, weights_only=not resumable)
    if trainer.is_global_zero:
        os.replace(temporary, path)


class InitialWeights(Callback):
    """Begins a training with weights of another run: those of all groups that both methods have.

    So methods can be compared from the same warm-up, and one method's generator serves another.

    Args:
        checkpoint: the other run's `best.ckpt` or another of its checkpoints.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights, unless the run goes on from a checkpoint of its own."""
        if trainer.ckpt_path is not None:
            return
        method = as_method(pl_module)
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        groups = method.load_groups(state, f"initial_weights: {self.checkpoint}")
        log.info("weights of %s taken from %s", " and ".join(groups), self.checkpoint)


class ResumePoint(Checkpoint):
    """Keeps `last.ckpt` at the end of every epoch, and every n optimiser steps between.

    Lightning's own ModelCheckpoint can save after an epoch's last batch; a run resumed from there
    takes the epoch for finished and loses its validation. So the last batch is left to the
    epoch's end.

    Args:
        folder: the run's folder of checkpoints.
        every_n_steps: optimiser steps between two checkpoints within an epoch; 0 = none.
    """

    def __init__(self, folder: Path, every_n_steps: int = 0) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.saved_at = 0

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: RagBatch,
        batch_idx: int,
    ) -> None:
        """Save at the steps of the schedule, once each (accumulation repeats a step)."""
        step, every = trainer.global_step, self.every_n_steps
        if not every or step % every or step == self.saved_at or trainer.is_last_batch:
            return
        self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the epoch, its validation and a phase that ended with it left."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        self.saved_at = trainer.global_step
        save_checkpoint(trainer, self.folder / "last.ckpt", resumable=True)

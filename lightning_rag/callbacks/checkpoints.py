"""Where a run can go on from: `checkpoints/last.ckpt`, complete or as it was before."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_rag.types import RagBatch


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

"""What a run begins with, what it replaces, and where it can go on from."""

from __future__ import annotations

import logging
import os
import shutil
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
    trainer.strategy.barrier("save_checkpoint")  # the others may read it


def link_checkpoint(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`; a copy, where the file system has no links."""
    if target.exists() and target.samefile(source):
        return
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


class Replace(Callback):
    """Removes what a former run left in the folder, as soon as the new one can begin.

    Until then it stays: a mistake in the new configuration must not cost the old checkpoints.

    Args:
        folder: the run's folder.
        estimates: also what it has found within an estimate, so that it is found anew. Otherwise a
            run that was killed before its first checkpoint is started again and goes on from there.
    """

    def __init__(self, folder: Path, *, estimates: bool) -> None:
        self.stale = [
            path
            for path in folder.rglob("*")
            if path.is_file() and (estimates or folder / "estimates" not in path.parents)
        ]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files that were there before; the configuration is replaced later."""
        if trainer.is_global_zero:
            for path in self.stale:
                if path.name != "config.yaml":
                    path.unlink(missing_ok=True)


class InitialWeights(Callback):
    """Begins with weights of another run: those of all groups that both methods have.

    So methods can be compared from the same warm-up, and one method's generator serves another. A
    test alone, of no checkpoint of its own, says what these weights are worth without training.

    Args:
        checkpoint: the other run's `best.ckpt` or another of its checkpoints.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.trained = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights, unless the run goes on from a checkpoint of its own."""
        self.trained = True
        if trainer.ckpt_path is None:
            self._load(pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the weights, unless others were trained or given."""
        if not self.trained and trainer.ckpt_path is None:
            self._load(pl_module)

    def _load(self, pl_module: LightningModule) -> None:
        method = as_method(pl_module)
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        groups = method.load_groups(state, f"initial_weights: {self.checkpoint}")
        log.info("weights of %s taken from %s", " and ".join(groups), self.checkpoint)


class ResumePoint(Checkpoint):
    """Keeps `last.ckpt` at the end of every epoch, and every n optimiser steps between.

    Lightning's own ModelCheckpoint can save after a batch and before the validation that follows
    it; a run resumed from there loses that validation, for Lightning takes it as done. So a
    checkpoint that falls on a validated step waits for the end of the validation, and one that
    falls on the last batch of an epoch, or on a step at which the training stops, for the end of
    the epoch.

    A validation that goes by the clock (a `val_check_interval` of time) is not foreseen, and a
    resumed run starts its clock anew: such a run resumes, but not exactly.

    Args:
        folder: the run's folder of checkpoints.
        every_n_steps: optimiser steps between two checkpoints within an epoch; 0 = none.
    """

    def __init__(self, folder: Path, every_n_steps: int = 0) -> None:
        self.folder = folder
        self.every_n_steps = every_n_steps
        self.saved_at = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the step that the run begins with as saved: a resumed run has it from a file."""
        self.saved_at = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: RagBatch,
        batch_idx: int,
    ) -> None:
        """Save at the steps of the schedule, unless a validation of this step follows."""
        if self._due(trainer) and not _validates(trainer, batch_idx):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what waited for the validation, which the callbacks before this one have judged."""
        if trainer.state.fn == "fit" and self._due(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the epoch, its validation and a phase that ended with it left."""
        self._save(trainer)

    def _due(self, trainer: Trainer) -> bool:
        """Whether the schedule says so; once a step, for accumulation repeats it."""
        step, every = trainer.global_step, self.every_n_steps
        if not every or step % every or step == self.saved_at:
            return False
        return not (trainer.is_last_batch or trainer.should_stop)

    def _save(self, trainer: Trainer) -> None:
        self.saved_at = trainer.global_step
        save_checkpoint(trainer, self.folder / "last.ckpt", resumable=True)


def _validates(trainer: Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates when this batch, which is not its epoch's last, has ended."""
    interval, epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    if interval is None or not trainer.enable_validation:
        return False
    if epochs is None:  # then batches are counted over all epochs
        return (trainer.fit_loop.total_batch_idx + 1) % interval == 0
    return (trainer.current_epoch + 1) % epochs == 0 and (batch_idx + 1) % interval == 0

"""A callback that watches estimates, and ends a run within one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.methods.base import as_method
from lightning_rag.types import RagBatch

Estimate = Callable[[RagBatch], dict[str, Tensor]]


class Watch(Callback):
    """Writes a line for each batch that an estimate computes, and has every batch kept at once.

    Args:
        record: file of lines "<phase> <first row of the batch>".
        phase: in whose estimate the run ends; "" = in none.
        batch: before which batch, counted from 0 among those that this process computes.
        signal: what this process is sent then, as by a power cut; None = it raises an error.
        rank: of several processes the one that ends.
    """

    def __init__(
        self,
        record: Path,
        phase: str = "",
        batch: int = 0,
        signal: int | None = None,
        rank: int = 0,
    ) -> None:
        self.record = record
        self.phase = phase
        self.batch = batch
        self.signal = signal
        self.rank = rank

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        phase_of_end = self.phase if trainer.global_rank == self.rank else ""
        (schedule,) = [c for c in trainer.callbacks if isinstance(c, PhaseSchedule)]
        schedule.shard_seconds = 0.0
        for phase in as_method(pl_module).schedule:
            if phase.estimate is not None:
                phase.estimate = self._watched(
                    phase.name, phase.estimate, ends=phase.name == phase_of_end
                )

    def _watched(self, phase: str, estimate: Estimate, *, ends: bool) -> Estimate:
        computed = 0

        def watched(batch: RagBatch) -> dict[str, Tensor]:
            nonlocal computed
            if ends and computed == self.batch:
                if self.signal is None:
                    raise RuntimeError("ended within an estimate")
                os.kill(os.getpid(), self.signal)
            computed += 1
            with self.record.open("a") as file:
                file.write(f"{phase} {int(batch.rows[0])}\n")
            return estimate(batch)

        return watched

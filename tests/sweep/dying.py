"""A callback that kills the process, as a power cut would, but only once."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer


class DieOnce(Callback):
    """SIGKILL to this process after the training batch of a global step.

    It leaves a file, which the variable DIE_ONCE of the environment names; where this is, it lives.
    """

    def __init__(self, step: int = 6) -> None:
        self.step = step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
    ) -> None:
        marker = Path(os.environ["DIE_ONCE"])
        if trainer.global_step == self.step and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

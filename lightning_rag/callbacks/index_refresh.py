"""Encodes the passage store again while its encoder learns."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_rag.callbacks.cost_ledger import booked
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)


class IndexRefresh(Callback):
    """Calls a method's `refresh_index` before training, every n steps, and before evaluation.

    A validation refreshes only an index that is stale, that is, older than the last step. The
    method keeps its index in the checkpoint, so a resumed run goes on with the same vectors.

    Args:
        every_n_steps: optimiser steps between two refreshes (ETRAG, arXiv 2406.03790: 100);
            0 = only before evaluation.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 0:
            raise UserError(f"IndexRefresh.every_n_steps is {every_n_steps}; legal: 0 or more")
        self.every_n_steps = every_n_steps
        self.refreshed_at = -1  # global step of the last refresh, -1 = never

    def state_dict(self) -> dict[str, Any]:
        """Return when the index in the checkpoint was made."""
        return {"refreshed_at": self.refreshed_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.refreshed_at = state_dict["refreshed_at"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RagBatch, batch_idx: int
    ) -> None:
        """Refresh at the steps of the schedule, and before the first step."""
        step, every = trainer.global_step, self.every_n_steps
        if self.refreshed_at == step:
            return
        if self.refreshed_at < 0 or (every > 0 and step % every == 0):
            self._refresh(as_method(pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh a stale index."""
        if self.refreshed_at != trainer.global_step:
            self._refresh(as_method(pl_module))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh: the weights may come from another step than the index."""
        self._refresh(as_method(pl_module))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh: the weights may come from another step than the index."""
        self._refresh(as_method(pl_module))

    def _refresh(self, method: Method) -> None:
        modes = {module: module.training for module in method.modules()}
        method.eval()
        with torch.no_grad(), booked(method, "refresh"):
            method.refresh_index()
        for module, training in modes.items():
            module.training = training
        self.refreshed_at = method.trainer.global_step
        log.info("index refreshed at step %d", self.refreshed_at)

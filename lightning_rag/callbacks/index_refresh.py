"""Encodes the passage store again while its encoder learns."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_rag.callbacks.cost_ledger import booked
from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)


class IndexRefresh(Callback):
    """Calls `refresh_index` every `refresh_every` steps of a method, and before evaluation.

    Both are the method's; one without an index (`refresh_every` is None) is left alone. Training
    that reads the index begins with a refresh. A validation refreshes only an index that is stale,
    that is, older than the last step. The method keeps its index in the checkpoint, so a resumed
    run goes on with the same vectors.
    """

    def __init__(self) -> None:
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
        step, every = trainer.global_step, as_method(pl_module).refresh_every
        if every and self.refreshed_at != step and (self.refreshed_at < 0 or step % every == 0):
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
        if method.refresh_every is None:
            return
        modes = {module: module.training for module in method.modules()}
        method.eval()
        with torch.no_grad(), booked(method, "refresh"):
            method.refresh_index()
        for module, training in modes.items():
            module.training = training
        self.refreshed_at = method.trainer.global_step
        log.info("index refreshed at step %d", self.refreshed_at)

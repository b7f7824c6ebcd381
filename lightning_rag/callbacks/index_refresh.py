"""Encodes the passage store again while its encoder learns."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_rag.callbacks.cost_ledger import booked
from lightning_rag.callbacks.staleness import overlap, probe
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)


class IndexRefresh(Callback):
    """Calls `refresh_index` every `refresh_every` steps of a method, and before evaluation.

    A method without an index (`refresh_every` is None) is left alone. Training that reads the index
    begins with a refresh. A validation refreshes only an index that is stale, that is, older than
    the last step. What training reads is kept in `last.ckpt`: a resumed run needs the vectors of
    the killed one, not new ones.

    A refresh of a stale index within the training looks some training queries up before and after
    it, with the encoder as it is: `overlap@k` is the share of the first k passages that the two
    have in common (`callbacks.staleness`), 1 for an index that is as good as a fresh one.

    Attributes:
        staleness: for each of these refreshes `step`, `since`, the step of the refresh before, and
            `overlap@k`, which is also logged as `index/overlap@k`.
    """

    def __init__(self) -> None:
        self.staleness: list[dict[str, float]] = []
        self.method: Method | None = None
        self.kept: dict[str, Any] = {}  # of a checkpoint, until the method has its index

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the method, whose index goes into checkpoints."""
        self.method = as_method(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the index, if training reads it, and when it was made."""
        method = self.method
        if method is None or method.refresh_every is None:
            return {}
        index = {"index": method.index} if method.refresh_every else {}
        return {"refreshed_at": method.refreshed_at, "staleness": self.staleness, **index}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.kept = state_dict
        self.staleness = state_dict.get("staleness", [])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give a resumed method its index back.

        Raises:
            UserError: the store is not the one that the run was killed with.
        """
        method = as_method(pl_module)
        index = self.kept.pop("index", None)
        if index is None:
            return
        if index.shape != method.index.shape:
            raise UserError(
                f"ckpt_path: the run was killed with an index of shape {tuple(index.shape)}, its "
                f"data now give {tuple(method.index.shape)}; continue it with the data that it had"
            )
        method.index.copy_(index)
        method.refreshed_at = self.kept["refreshed_at"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RagBatch, batch_idx: int
    ) -> None:
        """Refresh at the steps of the schedule, and an index that does not fit the weights."""
        method, step = as_method(pl_module), trainer.global_step
        every, last = method.refresh_every, method.refreshed_at
        if method.finished or method.stopped:
            return  # no step is taken with this batch
        if every and last != step and (last < 0 or step % every == 0):
            self._refresh(method)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh a stale index, unless the phase is judged without it."""
        method = as_method(pl_module)
        if method.judges_itself:
            return
        if trainer.state.fn != "fit" or method.refreshed_at != trainer.global_step:
            self._refresh(method)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh: the weights may come from another step than the index."""
        self._refresh(as_method(pl_module))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refresh: the weights may come from another step than the index."""
        self._refresh(as_method(pl_module))

    def _refresh(self, method: Method) -> None:
        if method.refresh_every is None:
            return
        # An index that training does not read is made for the evaluation alone.
        with evaluating(method), booked(method, "refresh" if method.refresh_every else "evaluate"):
            self._refresh_and_compare(method)
        method.refreshed_at = method.trainer.global_step
        log.info("index refreshed at step %d", method.refreshed_at)

    def _refresh_and_compare(self, method: Method) -> None:
        """Refresh the index; if training made it stale, find out how stale it was."""
        step, since = method.trainer.global_step, method.refreshed_at
        rehearsed = method.trainer.fast_dev_run  # type: ignore[attr-defined]
        if method.trainer.state.fn != "fit" or rehearsed or since in (-1, step):
            method.refresh_index()
            return
        stale = probe(method)
        method.refresh_index()
        share = overlap(stale, probe(method))
        name = f"overlap@{method.k}"
        self.staleness.append({"step": step, "since": since, name: share})
        for logger in method.trainer.loggers:
            logger.log_metrics({f"index/{name}": share}, step=step)


@contextmanager
def evaluating(method: Method) -> Iterator[None]:
    """Without gradient or dropout and in the run's precision inside; then modes are as before."""
    modes = {module: module.training for module in method.modules()}
    method.eval()
    try:
        with torch.no_grad(), method.trainer.precision_plugin.forward_context():
            yield
    finally:
        for module, training in modes.items():
            module.training = training

"""Feeds the task's metrics: the same names for every method, `val/<metric>` and `test/<metric>`."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torchmetrics import MetricCollection

from lightning_rag.methods.base import as_method
from lightning_rag.metrics.base import CountedMetric
from lightning_rag.metrics.counts import Aggregation, Count
from lightning_rag.metrics.retrieval import among
from lightning_rag.types import Evaluated, RagBatch, Retrieved


class Evaluator(Callback):
    """Updates the task's metrics from a method's predictions and logs them once an epoch.

    A phase that validates by figures of its own logs them itself, and has no others. Several
    processes count the queries that they have; the figures are of the counts of all.
    """

    def __init__(self) -> None:
        self.metrics: MetricCollection | None = None
        self._counts: dict[str, list[Count]] = {}
        self._aggregations: dict[str, Aggregation] = {}

    def counts(self) -> dict[str, list[Count]]:
        """Return what every query of a test added to each figure.

        In the order of the queries; those of several processes, one process after the other. A
        metric that does not say so (a task's own, no `CountedMetric`) has none.
        """
        return self._counts

    def aggregations(self) -> dict[str, Aggregation]:
        """Return how the figures of a test come out of `counts`."""
        return self._aggregations

    def _counted(self) -> list[CountedMetric]:
        found = [] if self.metrics is None else list(self.metrics.values())
        return [metric for metric in found if isinstance(metric, CountedMetric)]

    def _start(self, module: LightningModule) -> None:
        self.metrics = as_method(module).data.metrics().to(module.device)

    def _update(self, outputs: Evaluated, batch: RagBatch) -> None:
        if self.metrics is None:
            raise RuntimeError("Evaluator: a batch ended before its epoch started")
        if batch.idle:
            for metric in self._counted():
                metric.take_part()
            return
        self.metrics.update(outputs["predictions"], _judged(batch, outputs["retrieved"]))

    def _log(self, module: LightningModule, stage: str) -> None:
        if self.metrics is None:
            raise RuntimeError("Evaluator: an epoch ended before it started")
        values = self.metrics.compute()
        monitor = as_method(module).data.task.monitor
        for name, value in values.items():
            module.log(f"{stage}/{name}", value, prog_bar=name == monitor)

    def _take_counts(self) -> None:
        """Keep what the queries of all processes added: a figure may be there for some alone."""
        self._counts, self._aggregations = {}, {}
        for metric in self._counted():
            with metric.sync_context():
                rows = metric.rows()
            self._counts |= rows
            self._aggregations |= {name: metric.aggregation(name) for name in rows}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take fresh metrics, and forget those of an earlier phase, which Lightning keeps."""
        for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:
            del trainer.callback_metrics[name]
        if not as_method(pl_module).judges_itself:
            self._start(pl_module)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take fresh metrics."""
        self._start(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: RagBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, if there are answers."""
        if not as_method(pl_module).judges_itself:
            self._update(cast(Evaluated, outputs), batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: RagBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self._update(cast(Evaluated, outputs), batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log `val/<metric>`, if there are answers."""
        if not as_method(pl_module).judges_itself:
            self._log(pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log `test/<metric>`."""
        self._log(pl_module, "test")
        self._take_counts()


def _judged(batch: RagBatch, retrieved: Retrieved) -> RagBatch:
    """Return the batch with the candidates that the method ranked, and their relevance.

    What holds for the whole store, `relevant_rows` and `answer_rows`, stays as it is: a method may
    rank other passages than the first stage's.
    """
    ids = retrieved.candidate_ids  # (B, N')
    if ids is batch.candidate_ids:
        return batch
    relevance = torch.zeros(ids.shape, device=ids.device)
    for row, relevant in enumerate(batch.relevant_rows):
        relevance[row] = among(ids[row], relevant)
    return replace(batch, candidate_ids=ids, relevance=relevance)

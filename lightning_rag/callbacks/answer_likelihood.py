"""How likely the gold answer is under the generator: a finer figure than whether it was written."""

from __future__ import annotations

from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import Evaluated, RagBatch


class AnswerLikelihood(Callback):
    """Logs `val/answer_log_likelihood` and `test/answer_log_likelihood`.

    It is the mean over the queries of log p(y | x, z), in nats, summed over the answer's tokens:
    y the target, z the passages that the method chose. A small model that writes hardly an answer
    right still shows by it whether training helps. It costs one more forward pass of the generator
    for each query.
    """

    @torch.no_grad()
    def _log(self, method: Method, stage: str, outputs: Evaluated, batch: RagBatch) -> None:
        retrieved = outputs["retrieved"]
        log_p = method.generator.log_likelihood(
            method.prompts(batch, retrieved),
            [method.data.task.target(instance) for instance in batch.instances],
            soft_prompt=retrieved.soft_prompt,
            reduction="sum",
        )  # (B,)
        method.log_queries(f"{stage}/answer_log_likelihood", log_p, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: RagBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a batch, if there are answers."""
        method = as_method(pl_module)
        if not method.judges_itself:
            self._log(method, "val", cast(Evaluated, outputs), batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: RagBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score a batch."""
        self._log(as_method(pl_module), "test", cast(Evaluated, outputs), batch)

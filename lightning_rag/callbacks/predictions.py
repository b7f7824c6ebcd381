"""Writes what was predicted and retrieved: `predictions.jsonl`, and a text page in TensorBoard."""

from __future__ import annotations

import html
from pathlib import Path
from typing import cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_rag.files import Json, write_jsonl
from lightning_rag.methods.base import as_method
from lightning_rag.types import Evaluated, RagBatch, Retrieved

Row = dict[str, Json]


class PredictionWriter(Callback):
    """Collects a row for every query of `test` and `predict`.

    A row of `predictions.jsonl` (test) or `predictions-<split>.jsonl` (predict) holds `id`,
    `target` (all accepted answers), `prediction`, and of the retrieved passages, best first,
    `retrieved` (ids) and `scores`.

    Args:
        folder: the run's folder.
        shown: queries on the text page of retrieved passages.
    """

    def __init__(self, folder: Path, shown: int = 20) -> None:
        self.folder = folder
        self.shown = shown
        self.rows: list[Row] = []
        self.page: list[str] = []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self.rows, self.page = [], []

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self.rows, self.page = [], []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: RagBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._collect(pl_module, cast(Evaluated, outputs), batch)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: RagBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect a batch."""
        self._collect(pl_module, cast(Evaluated, outputs), batch)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `predictions.jsonl` and the text page."""
        self._write(trainer, "predictions.jsonl")
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text(
                "test/retrieved", "\n\n".join(self.page), trainer.global_step
            )

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `predictions-<split>.jsonl`."""
        split = as_method(pl_module).data.predict_split
        self._write(trainer, f"predictions-{split}.jsonl")

    def _collect(self, module: LightningModule, outputs: Evaluated, batch: RagBatch) -> None:
        method = as_method(module)
        retrieved: Retrieved = outputs["retrieved"]
        for index, (instance, text) in enumerate(
            zip(batch.instances, outputs["predictions"].texts, strict=True)
        ):
            chosen = [p for p in retrieved.positions[index].tolist() if p >= 0]
            passages = [method.data.store[int(retrieved.candidate_ids[index, p])] for p in chosen]
            scores: list[Json] = [float(retrieved.scores[index, p]) for p in chosen]
            self.rows.append(
                {
                    "id": instance.id,
                    "target": list(instance.answers),
                    "prediction": text,
                    "retrieved": [passage.id for passage in passages],
                    "scores": scores,
                }
            )
            if len(self.page) < self.shown:
                shown = [(p.id, method.render(p).text) for p in passages]
                query = method.data.task.source(instance).text
                self.page.append(_markdown(query, instance.answers, text, shown))

    def _write(self, trainer: Trainer, name: str) -> None:
        if trainer.is_global_zero:
            write_jsonl(self.folder / name, self.rows)


def _markdown(
    query: str, targets: tuple[str, ...], prediction: str, passages: list[tuple[str, str]]
) -> str:
    """Render a query for TensorBoard's text page, which shows Markdown: data is escaped."""
    lines = [
        f"**query** {html.escape(query)}",
        f"**target** {html.escape(' | '.join(targets))}",
        f"**prediction** {html.escape(prediction)}",
    ]
    lines += [
        f"{i}. `{html.escape(id_)}` {html.escape(t)}" for i, (id_, t) in enumerate(passages, 1)
    ]
    return "\n\n".join(lines[:3]) + "\n\n" + "\n".join(lines[3:]) + "\n\n---"

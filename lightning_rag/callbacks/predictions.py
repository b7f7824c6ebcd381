"""Writes what was predicted and retrieved: `predictions.jsonl`, `passages.jsonl`, a text page."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.files import Json, write_jsonl
from lightning_rag.functional.processes import process_count, texts_of_all
from lightning_rag.methods.base import Method, as_method
from lightning_rag.metrics.counts import Count
from lightning_rag.metrics.retrieval import among, best_rows
from lightning_rag.types import Evaluated, Passage, RagBatch

Row = dict[str, Json]
MARKS = re.compile(r"([\\`*_\[\]])")  # what would be emphasis, code or a link

DEPTH = 50  # passages of a ranking that are kept


class PredictionWriter(Callback):
    """Collects a row for every query of `test` and `predict`.

    A row of `predictions.jsonl` (test) or `predictions-<split>.jsonl` (predict) holds

    - `id`, `task` (of unified information extraction), `text` (the query as the generator reads
      it), `target` (all accepted answers), `prediction`;
    - of the retrieved passages, best first, `retrieved` (ids) and `scores`;
    - `ranked`, the ids of the first passages of the method's ranking (`DEPTH` at most), in the
      order in which the metrics rank them, and `ranked_relevant`, 1 for a relevant one;
      `first_stage` and `first_stage_relevant` of the first stage's ranking; `relevant`, the number
      of relevant passages in the store;
    - after a test, `counts`: what the query adds to each figure that it counts in
      (`metrics.counts`).

    A test writes `passages.jsonl` beside it: `id`, `text` (as the generator reads it) and `label`
    (where it has one) of every passage that is among `retrieved`, each once.

    Several processes collect the queries that they have; the files hold those of all, in the order
    of the split, as one process writes them.

    Args:
        folder: the run's folder.
        shown: queries on the text page of retrieved passages.
    """

    def __init__(self, folder: Path, shown: int = 20) -> None:
        self.folder = folder
        self.shown = shown
        self.places: list[int] = []  # of the queries in their split, one for each row
        self.rows: list[Row] = []
        self.passages: dict[str, Row] = {}
        self.page: list[str] = []

    def _start(self) -> None:
        self.places, self.rows, self.passages, self.page = [], [], {}, []

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self._start()

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start afresh."""
        self._start()

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
        """Write `predictions.jsonl`, `passages.jsonl` and the text page."""
        self._join(pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluator):
                _add_counts(self.rows, callback.counts())
        self._sort()
        self._write(trainer, "predictions.jsonl", self.rows)
        self._write(trainer, "passages.jsonl", self.passages.values())
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text(
                "test/retrieved", "\n\n".join(self.page), trainer.global_step
            )

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `predictions-<split>.jsonl`."""
        self._join(pl_module)
        self._sort()
        split = as_method(pl_module).data.predict_split
        self._write(trainer, f"predictions-{split}.jsonl", self.rows)

    def _collect(self, module: LightningModule, outputs: Evaluated, batch: RagBatch) -> None:
        if batch.idle:
            return
        method = as_method(module)
        self.places += batch.rows.tolist()
        store, task = method.data.store, method.data.task
        predictions, retrieved = outputs["predictions"], outputs["retrieved"]
        orders = {
            "ranked": best_rows(predictions.ranking, retrieved.candidate_ids, DEPTH),
            "first_stage": best_rows(batch.candidate_scores, batch.candidate_ids, DEPTH),
        }
        for index, (instance, text) in enumerate(
            zip(batch.instances, predictions.texts, strict=True)
        ):
            columns = [p for p in retrieved.positions[index].tolist() if p >= 0]
            chosen = [store[int(retrieved.candidate_ids[index, p])] for p in columns]
            query, relevant = task.source(instance).text, batch.relevant_rows[index]
            row: Row = {"id": instance.id}
            if instance.task:
                row["task"] = instance.task
            row |= {"text": query, "target": list(instance.answers), "prediction": text}
            row["retrieved"] = [passage.id for passage in chosen]
            row["scores"] = [float(retrieved.scores[index, p]) for p in columns]
            for name, rankings in orders.items():
                ranking = rankings[index]
                row[name] = [store[place].id for place in ranking]
                hits = among(torch.tensor(ranking, dtype=torch.long), relevant)
                row[f"{name}_relevant"] = hits.int().tolist()
            row["relevant"] = len(relevant)
            self.rows.append(row)
            shown = [(passage.id, self._passage(method, passage)) for passage in chosen]
            if len(self.page) < self.shown:
                self.page.append(_markdown(query, instance.answers, text, shown))

    def _passage(self, method: Method, passage: Passage) -> str:
        """Return a passage as the generator reads it, and keep it for `passages.jsonl`."""
        if passage.id not in self.passages:
            row: Row = {"id": passage.id, "text": method.render(passage).text}
            if passage.instance is not None and passage.instance.answers:
                row["label"] = passage.instance.answers[0]
            self.passages[passage.id] = row
        return str(self.passages[passage.id]["text"])

    def _join(self, module: LightningModule) -> None:
        """Take what all processes have collected, one process after the other."""
        if process_count() == 1:
            return
        own = json.dumps([self.places, self.rows, self.passages, self.page])
        self._start()
        pages: dict[int, str] = {}
        for text in texts_of_all(own, module.device):
            places, rows, passages, page = json.loads(text)
            pages.update(zip(places, page, strict=False))  # the first of them have one
            self.places += places
            self.rows += rows
            self.passages |= passages
        self.page = [pages[place] for place in sorted(pages)][: self.shown]

    def _sort(self) -> None:
        """Put the queries into the order of their split, passages where they come first."""
        order = sorted(range(len(self.rows)), key=lambda index: self.places[index])
        self.rows = [self.rows[index] for index in order]
        shown = [id_ for row in self.rows for id_ in cast(list[str], row["retrieved"])]
        self.passages = {id_: self.passages[id_] for id_ in dict.fromkeys(shown)}

    def _write(self, trainer: Trainer, name: str, rows: Iterable[Row]) -> None:
        if trainer.is_global_zero:
            write_jsonl(self.folder / name, rows)


def _add_counts(rows: Sequence[Row], counts: Mapping[str, Sequence[Count]]) -> None:
    """Give each row what it adds to each figure that it counts in."""
    for index, row in enumerate(rows):
        added = {name: values[index] for name, values in counts.items()}
        row["counts"] = {name: cast(Json, v) for name, v in added.items() if v is not None}


def _markdown(
    query: str, targets: tuple[str, ...], prediction: str, passages: list[tuple[str, str]]
) -> str:
    """Render a query for TensorBoard's text page, which shows Markdown: data is escaped."""
    lines = [
        f"**query** {_escaped(query)}",
        f"**target** {_escaped(' | '.join(targets))}",
        f"**prediction** {_escaped(prediction)}",
    ]
    lines += [f"{i}. **{_escaped(id_)}** {_escaped(t)}" for i, (id_, t) in enumerate(passages, 1)]
    return "\n\n".join(lines[:3]) + "\n\n" + "\n".join(lines[3:]) + "\n\n---"


def _escaped(text: str) -> str:
    """Return a text of one line that Markdown shows as it is."""
    return MARKS.sub(r"\\\1", html.escape(" ".join(text.split()), quote=False))

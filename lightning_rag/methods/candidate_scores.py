"""Scores of a query's candidates by models that read its gold answer: generator, reward model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lightning_rag.backbones.cross_encoder import CrossEncoder
from lightning_rag.backbones.generator import Generator
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.preference_files import read_preferences
from lightning_rag.errors import UserError
from lightning_rag.methods.preferences import drawn, off_task
from lightning_rag.tasks.base import Task
from lightning_rag.tasks.keywords import Tags
from lightning_rag.types import Instance, Passage, Prompt, RagBatch, Rendered

READ_AT_ONCE = 128  # pairs that the reward model reads without gradient, as in the released code


class Preferences:
    """What a frozen generator prefers among the candidates of queries: computed, or from a file.

    Args:
        generator: the model, which does not learn.
        data: task, passage store and queries.
        count: how many of a query's candidates are scored.
        at_random: which ones, see `preferences.drawn`.
        tags: how keywords are tagged in query and candidate, as in the released code; "none" reads
            what the generator reads when it answers.
        file: the preferences of the training queries, computed elsewhere; None = computed here.
    """

    def __init__(
        self,
        generator: Generator,
        data: RagDataModule,
        *,
        count: int,
        at_random: bool,
        tags: Tags = "none",
        file: Path | None = None,
    ) -> None:
        self.generator = generator
        self.data = data
        self.count = count
        self.at_random = at_random
        self.tags: Tags = tags
        self.file = file
        self._read: Tensor | None = None  # (Q, N)
        self._remembered: dict[int, Tensor] = {}  # (N,) of validation queries, by row

    def score(self, batch: RagBatch, wanted: Tensor) -> Tensor:
        """Score candidates by how likely the gold answer is with each as the only demonstration.

        The score is (1 / T) sum_t log p(y_t | candidate, query, y_<t) over the T tokens of the
        answer and its end. RUIE's released code counts T on the answer alone, and so can score
        tokens of the prompt.

        Args:
            batch: B queries with N candidates.
            wanted: (B, N) bool, the candidates to score.

        Returns:
            (B, N) float32, in nats per token, NaN where not wanted.

        Raises:
            UserError: a query without answer.
        """
        check_answers(batch)
        task, store = self.data.task, self.data.store
        sources = [_source(task, instance, self.tags) for instance in batch.instances]
        targets = [task.target(instance) for instance in batch.instances]
        owners, rows = wanted.nonzero()[:, 0].tolist(), batch.candidate_ids[wanted].tolist()
        shown = {row: _shown(task, store[row], self.tags) for row in set(rows)}
        scores = batch.candidate_scores.new_full(wanted.shape, torch.nan)
        if rows:
            found = self.generator.score(
                [Prompt(sources[n], (shown[row],)) for n, row in zip(owners, rows, strict=True)],
                [targets[n] for n in owners],
                reduction="mean",
            )
            scores[wanted] = found.to(scores)
        return scores

    def drawn(self, batch: RagBatch) -> Tensor:
        """Say which candidates are scored: (B, N) bool, always the same for a query."""
        return drawn(batch, self.count, self.data.seed, at_random=self.at_random)

    def of_training(self, batch: RagBatch) -> Tensor:
        """Return the preferences (B, N) of training queries, NaN where not scored.

        Raises:
            UserError: a file that is not as `data.preference_files` says.
        """
        if self.file is None:
            return self.score(batch, self.drawn(batch))
        if self._read is None:
            self._read = read_preferences(self.file, self.data.queries("train"), self.data.store)
        return self._read[batch.rows.cpu()].to(batch.candidate_scores)

    def of_validation(self, batch: RagBatch) -> Tensor:
        """Return preferences (B, N) of validation queries, computed once; NaN off their task."""
        rows = batch.rows.tolist()
        if any(row not in self._remembered for row in rows):
            wanted = self.drawn(batch) & ~off_task(batch, self.data.store)
            scores = self.score(batch, wanted).cpu()
            self._remembered.update(zip(rows, scores, strict=True))
        return torch.stack([self._remembered[row] for row in rows]).to(batch.candidate_scores)


class Rewards:
    """What a reward model thinks of the candidates of queries, whose gold answers it reads.

    Args:
        model: the reward model; whoever trains it has its weights.
        data: task and passage store.
        tags: how keywords are tagged in query and candidate.
    """

    def __init__(self, model: CrossEncoder, data: RagDataModule, tags: Tags) -> None:
        self.model = model
        self.data = data
        self.tags: Tags = tags

    @torch.no_grad()
    def score(self, batch: RagBatch, wanted: Tensor) -> Tensor:
        """Score candidates without gradient, pairs of similar length together.

        Args:
            batch: B queries with N candidates.
            wanted: (B, N) bool, the candidates to score.

        Returns:
            (B, N) float32 logits, NaN where not wanted.

        Raises:
            UserError: a query without answer.
        """
        check_answers(batch)
        owners, rows = wanted.nonzero()[:, 0].tolist(), batch.candidate_ids[wanted].tolist()
        queries, passages = self.pairs(batch, owners, rows)
        lengths = [len(q.text) + len(p.text) for q, p in zip(queries, passages, strict=True)]
        order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
        logits = batch.candidate_scores.new_zeros(len(order))
        for start in range(0, len(order), READ_AT_ONCE):
            some = order[start : start + READ_AT_ONCE]
            found = self.model([queries[i] for i in some], [passages[i] for i in some])
            logits[some] = found.to(logits)
        scores = batch.candidate_scores.new_full(wanted.shape, torch.nan)
        scores[wanted] = logits
        return scores

    def of_choice(self, batch: RagBatch, chosen: Tensor) -> Tensor:
        """Score the passages that queries learn from, with gradient.

        Args:
            batch: B queries.
            chosen: (B, P) rows of the store, -1 = none.

        Returns:
            (B, P), -inf where there is none. Where there is none at all, the scores still hang
            together with the weights, for the backward pass: a gradient of zero.
        """
        there = chosen >= 0
        owners, rows = there.nonzero()[:, 0].tolist(), chosen[there].tolist()
        logits: Tensor = self.model(*self.pairs(batch, owners or [0], rows or [0]))  # (C,)
        table = torch.full(there.shape, -torch.inf, device=logits.device)
        if rows:
            return table.index_put(there.nonzero(as_tuple=True), logits)
        return table + (0 * logits).sum()  # of any pair

    def pairs(
        self, batch: RagBatch, owners: Sequence[int], rows: Sequence[int]
    ) -> tuple[list[Rendered], list[Rendered]]:
        """Return what the reward model reads of C pairs.

        Args:
            batch: the queries.
            owners: C places of queries in the batch.
            rows: C rows of the store.

        Returns:
            C queries, with their answers, and C passages.
        """
        task, store = self.data.task, self.data.store
        queries = {n: task.tagged_query(batch.instances[n], self.tags) for n in set(owners)}
        passages = {row: task.tagged_key(store[row], self.tags) for row in set(rows)}
        return [queries[n] for n in owners], [passages[row] for row in rows]


def check_answers(batch: RagBatch) -> None:
    """Refuse queries without gold answer.

    Raises:
        UserError: naming the first of them.
    """
    for instance in batch.instances:
        if not instance.answers:
            raise UserError(
                f"instance {instance.id!r} has no answer, which the reward model and the "
                "generator's preference read; legal: model.ranker: retriever or first_stage"
            )


def _source(task: Task, instance: Instance, tags: Tags) -> Rendered:
    """Return what the generator reads of a query."""
    if tags == "none":
        return task.source(instance)
    tagged = task.tagged_query(instance, tags)
    end = len(tagged.text.removesuffix(task.target(instance)).rstrip())
    spans = {name: span for name, span in tagged.spans.items() if span[1] <= end}
    return Rendered(tagged.text[:end], spans)


def _shown(task: Task, passage: Passage, tags: Tags) -> Rendered:
    """Return what the generator reads of a candidate."""
    return task.passage(passage) if tags == "none" else task.tagged_key(passage, tags)

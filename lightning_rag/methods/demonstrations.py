"""Which passages a query learns from: a positive and negatives by a teacher's scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_rag.data.datamodule import QuerySet, RagDataModule
from lightning_rag.data.store import PassageStore
from lightning_rag.functional.ranked_choice import choose
from lightning_rag.methods.preferences import off_task, penalised
from lightning_rag.types import RagBatch


@dataclass
class Choice:
    """P passages for each of B queries, the positive first."""

    rows: Tensor  # (B, P) long; rows of the store, -1 = none: all of a query that is left out
    teacher: Tensor  # (B, P); the teacher's scores, -inf = not scored

    @property
    def there(self) -> Tensor:
        """Which places hold a passage: (B, P) bool."""
        return self.rows >= 0

    @property
    def usable(self) -> Tensor:
        """Which queries can be learned from: (B,) bool."""
        return self.rows[:, 0] >= 0


class Turns:
    """Chooses what queries learn from in an epoch; positives and negatives take turns.

    Args:
        data: its seed is that of the order of the turns, and of what is random.
        positives: the best so many are positives; a query with fewer scored candidates of its own
            task is left out.
        negatives: the worst so many are negatives.
    """

    def __init__(self, data: RagDataModule, positives: int, negatives: int) -> None:
        self.data = data
        self.positives = positives
        self.negatives = negatives

    def choose(
        self, batch: RagBatch, scores: Tensor, size: int, *, epoch: int, penalty: float
    ) -> Choice:
        """Return P passages for each query; an idle batch has nothing to learn from.

        Args:
            batch: B queries with N candidates.
            scores: (B, N) the teacher's, not finite = not scored.
            size: P.
            epoch: whose turn it is.
            penalty: taken off the scores of candidates of another task.
        """
        other = off_task(batch, self.data.store)
        scores = penalised(scores, other, penalty, self.positives)
        if batch.idle:
            scores = torch.full_like(scores, torch.nan)
        return choose_passages(
            batch,
            scores,
            size=size,
            positives=self.positives,
            negatives=self.negatives,
            epoch=epoch,
            seed=self.data.seed,
            store_size=len(self.data.store),
        )


def choose_passages(
    batch: RagBatch,
    scores: Tensor,
    *,
    size: int,
    positives: int,
    negatives: int,
    epoch: int,
    seed: int,
    store_size: int,
) -> Choice:
    """Choose by rank, taking turns with the epochs (`functional.ranked_choice`).

    A query with too few negatives among its candidates gets random passages that it may have and
    was not offered; the teacher has no score of these.

    Args:
        batch: B queries with N candidates.
        scores: (B, N) the teacher's, not finite = not scored.
        size: P.
        positives: the best so many are positives; a query with fewer scored candidates is left out.
        negatives: the worst so many are negatives.
        epoch: whose turn it is.
        seed: of the order of the turns, and of what is random.
        store_size: M, passages of the store.
    """
    numbers = [seed * 1_000_003 + row for row in batch.rows.tolist()]
    columns = choose(
        scores,
        epoch + seed,
        size=size,
        seeds=torch.tensor(numbers, dtype=torch.long),
        positives=positives,
        negatives=negatives,
        minimum=positives,
    )  # (B, P)
    nothing = columns < 0
    rows = batch.candidate_ids.gather(1, columns.clamp(min=0)).masked_fill(nothing, -1)
    teacher = scores.gather(1, columns.clamp(min=0)).masked_fill(nothing, -torch.inf)
    short = ~nothing[:, 0] & nothing.any(dim=1)  # (B,)
    for row in short.nonzero().flatten().tolist():
        places = nothing[row].nonzero().flatten()
        draw = torch.Generator().manual_seed((numbers[row] * 1009 + epoch) % 2**63)
        others = _strangers(batch, row, store_size)
        others = others[torch.randperm(len(others), generator=draw)[: len(places)]]
        rows[row, places[: len(others)]] = others.to(rows.device)
    return Choice(rows, teacher)


def _strangers(batch: RagBatch, row: int, store_size: int) -> Tensor:
    """Return the rows that a query may have and was not offered, (S,)."""
    free = torch.ones(store_size, dtype=torch.bool)
    free[batch.excluded_rows[row].cpu()] = False
    offered = batch.candidate_ids[row].cpu()
    free[offered[offered >= 0]] = False
    return free.nonzero().flatten()


def false_negatives(rows: Tensor, chosen: Tensor, queries: QuerySet, store: PassageStore) -> Tensor:
    """Say which passages of other queries are no true negatives of a query.

    They answer as the query does: a demonstration of the same task with the same answer, a plain
    passage that the task's `matches` accepts; or they are the query's own positive. Its own
    negatives stay: the teacher has judged them.

    Args:
        rows: (B,) the queries' rows in the training split.
        chosen: (B, P) rows of the store, the positive first, -1 = none.
        queries: the training queries.
        store: the passage store.

    Returns:
        (B, B * P) bool.
    """
    passages = chosen.flatten().cpu().numpy()  # (B * P,)
    shown = [store[row].instance if row >= 0 else None for row in passages.tolist()]
    plain = np.array([one is None for one in shown]) & (passages >= 0)
    answers = [None if one is None else (one.task, one.answers) for one in shown]
    found = []
    for number, query in enumerate(rows.tolist()):
        instance = queries.instances[query]
        wanted = (instance.task, instance.answers)
        same = np.array([answer == wanted for answer in answers])
        same |= plain & np.isin(passages, queries.answers[query])
        same |= passages == passages[number * chosen.shape[1]]
        found.append(torch.from_numpy(same & (passages >= 0)))
    own = torch.eye(len(chosen), dtype=torch.bool).repeat_interleave(chosen.shape[1], dim=1)
    return (torch.stack(found) & ~own).to(chosen.device)

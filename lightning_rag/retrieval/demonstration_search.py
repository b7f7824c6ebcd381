"""A bi-encoder over a store of demonstrations: their vectors, and what is nearest to a query."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_rag.backbones.encoder import Encoder
from lightning_rag.data.store import PassageStore
from lightning_rag.retrieval.pool import best_rows
from lightning_rag.tasks.base import Task
from lightning_rag.tasks.keywords import Tags
from lightning_rag.types import RagBatch, Rendered

ENCODED_AT_ONCE = 64  # passages, when there is no gradient


class DemonstrationSearch:
    """Embeds queries and passages of a store, and compares them by inner product.

    A passage is read with its answer and with its gold mentions tagged, a query without either
    (RUIE, arXiv 2409.11673).

    Args:
        encoder: the one encoder; whoever trains it has its weights.
        task: renders queries and passages.
        store: M passages.
        tags: how mentions are tagged.
    """

    def __init__(self, encoder: Encoder, task: Task, store: PassageStore, tags: Tags) -> None:
        self.encoder = encoder
        self.task = task
        self.store = store
        self.tags: Tags = tags

    def queries(self, batch: RagBatch) -> Tensor:
        """Encode the queries, without answer or tags: (B, D)."""
        texts = [self.task.query(instance) for instance in batch.instances]
        vectors: Tensor = self.encoder(texts, role="query")
        return vectors

    def keys(self, rows: Iterable[int]) -> list[Rendered]:
        """Return passages of the store as the encoder reads them, with answer and tags."""
        return [self.task.tagged_key(self.store[row], self.tags) for row in rows]

    def passages(self, rows: Tensor, queries: Tensor) -> Tensor:
        """Encode passages of a training batch, each distinct one once.

        Args:
            rows: (B, P) rows of the store, -1 = none.
            queries: (B, D) the vectors of their queries.

        Returns:
            (B, P, D), 0 where there is none.
        """
        there = rows >= 0
        # 0 times the queries: a process whose queries are all left out takes part in the backward
        # pass through `gather` too.
        nothing = (queries[:, None] * 0).expand(-1, rows.shape[1], -1)  # (B, P, D)
        if not there.any():
            return nothing
        distinct, places = torch.unique(rows[there], return_inverse=True)
        vectors = self.encoder(self.keys(distinct.tolist()), role="passage").to(nothing)
        return nothing.index_put(there.nonzero(as_tuple=True), vectors[places])

    def index(self) -> Tensor:
        """Encode the whole store without gradient: (M, D) float32 on the CPU."""
        return self._encoded(range(len(self.store)))

    @torch.no_grad()
    def scores(self, batch: RagBatch, index: Tensor | None = None) -> Tensor:
        """Score the first stage's candidates.

        Args:
            batch: B queries with N candidates.
            index: (M, D) vectors of the store; None = the candidates are encoded anew.

        Returns:
            (B, N) float32, -inf where there is no candidate.
        """
        distinct, places = torch.unique(batch.candidate_ids.clamp(min=0), return_inverse=True)
        if index is None:
            vectors = self._encoded(distinct.tolist()).to(places.device)  # (U, D)
        else:
            vectors = index[distinct]
        queries = self.queries(batch).float()  # (B, D)
        # Multiplied and added, not a matrix product: mixed precision would round that to 8 bits.
        scores = (queries[:, None] * vectors[places]).sum(dim=-1)
        return scores.masked_fill(batch.candidate_ids < 0, -torch.inf)

    def nearest(self, batch: RagBatch, index: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return what of the whole store is nearest to each query, of what it may have.

        Args:
            batch: B queries with N candidates.
            index: (M, D) vectors of the store.
            k: passages that are wanted at least; N of them are returned, if that is more.

        Returns:
            Rows (B, R) and scores (B, R) as of `pool.best_rows`.
        """
        size = max(k, batch.candidate_ids.shape[1])
        return best_rows(self.queries(batch), index, batch.excluded_rows, size)

    def _encoded(self, rows: Iterable[int]) -> Tensor:
        return self.encoder.encode(self.keys(rows), ENCODED_AT_ONCE, role="passage")

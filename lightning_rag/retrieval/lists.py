"""Lists of a query's candidates: the first stage's order, relevant ones first, shuffled."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_rag.data.store import PassageStore
from lightning_rag.types import RagBatch


def first_stage(scores: Tensor) -> Tensor:
    """Return the columns of candidates (..., N) as the first stage ranks them, by its scores."""
    return scores.argsort(dim=-1, descending=True, stable=True)


def ranked(batch: RagBatch, row: int) -> list[int]:
    """Return the store's rows of the candidates of query `row`, as the first stage ranks them."""
    ids = batch.candidate_ids[row, first_stage(batch.candidate_scores[row])]
    rows: list[int] = ids[ids >= 0].tolist()
    return rows


def gold(batch: RagBatch, row: int, store: PassageStore) -> list[int]:
    """Return the store's rows of the relevant passages of query `row`, the most useful first.

    These are the passages that the data set names, in its order (of the hops, say), whether they
    are candidates or not; where it names none, the candidates that count as relevant, in the order
    of the first stage. Others of the store that merely hold the answer's words can be about
    anything, and would teach a generator to answer "yes" without evidence.
    """
    relevant = set(batch.relevant_rows[row].tolist())
    named = [store.row(name) for name in batch.instances[row].relevant if name in store]
    return [passage for passage in named or ranked(batch, row) if passage in relevant]


def gold_first(
    batch: RagBatch, row: int, store: PassageStore, most: int | None = None
) -> list[int]:
    """Return the store's rows of up to `most` relevant passages, then of the other candidates."""
    return list(dict.fromkeys([*gold(batch, row, store)[:most], *ranked(batch, row)]))


def relevance(batch: RagBatch, positions: Tensor) -> Tensor:
    """Return whether the passages of lists (B, S, K) are relevant, (B, S, K) in {0, 1}."""
    every = batch.relevance[:, None].expand(-1, positions.shape[1], -1)  # (B, S, N)
    return every.gather(-1, positions.clamp(min=0)) * (positions >= 0)


def with_gold(batch: RagBatch, store: PassageStore, most: int) -> RagBatch:
    """Return the batch with up to `most` relevant passages of each query among its candidates.

    Those that are missing stand where a query has room, else in place of its last candidates, at
    the end of the first stage's order.
    """
    ids, relevant = batch.candidate_ids.clone(), batch.relevance.clone()  # (B, N) each
    scores = batch.candidate_scores.clone()  # (B, N)
    for row in range(len(batch.instances)):
        missing = [one for one in gold(batch, row, store)[:most] if one not in ids[row]]
        room = (ids[row] < 0).nonzero().flatten().tolist()
        last = first_stage(scores[row]).flip(0).tolist()
        others = [column for column in last if ids[row, column] >= 0 and not relevant[row, column]]
        for column, passage in zip([*room, *others], missing, strict=False):
            known = scores[row][scores[row].isfinite()]
            scores[row, column] = known.min() if len(known) else 0.0
            ids[row, column], relevant[row, column] = passage, 1.0
    return replace(batch, candidate_ids=ids, candidate_scores=scores, relevance=relevant)


def shuffled(batch: RagBatch, seed: int) -> RagBatch:
    """Return the batch with the candidates of each query in a random order of its own.

    The order depends on the seed and the query alone. `candidate_scores` become minus the rank,
    so that the first stage's order survives among equal scores.
    """
    order = torch.empty_like(batch.candidate_ids)  # (B, N)
    ranks = torch.empty_like(batch.candidate_scores)  # (B, N)
    for row, number in enumerate(batch.rows.tolist()):
        found = int((batch.candidate_ids[row] >= 0).sum())
        draw = torch.Generator().manual_seed(seed * 1_000_003 + number)
        every = torch.arange(order.shape[1])  # padding stays at the end
        order[row] = torch.cat([torch.randperm(found, generator=draw), every[found:]])
        ranks[row] = -first_stage(batch.candidate_scores[row]).argsort().to(ranks)
    ranks = ranks.masked_fill(batch.candidate_ids < 0, -torch.inf)
    return replace(
        batch,
        candidate_ids=batch.candidate_ids.gather(1, order),
        candidate_scores=ranks.gather(1, order),
        relevance=batch.relevance.gather(1, order),
    )

"""Measures of a ranking, as trec_eval computes them.

Conventions, all trec_eval's (v9):

- Scores are compared as 32-bit floats, and ties are broken by descending id. Our ids are the rows
  of the passage store (`candidate_ids`); where none are given, the columns take their place.
  trec_eval compares ids as strings, so it agrees when a run is written with rows of equal width.
- A candidate with the score -inf or the id -1 (padding) was not retrieved: it never counts.
- A query without any relevant passage scores 0 and counts in the mean, because all our queries are
  judged. One for which nothing was retrieved scores 0 as well (trec_eval's option -c).
- Precision divides by k and recall by the number of relevant passages in the whole store, however
  many were retrieved; the ideal ranking of nDCG holds all of these, not just those retrieved.

`torchmetrics.retrieval` takes the ideal ranking from the candidates alone: its nDCG is too large.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_rag.metrics.base import QueryMean
from lightning_rag.types import Predictions, RagBatch


def ranked_hits(ranking: Tensor, relevance: Tensor, candidate_ids: Tensor | None = None) -> Tensor:
    """Return for each rank whether a relevant passage stands there.

    Args:
        ranking: (B, N) score of each candidate, larger is better, -inf = not retrieved.
        relevance: (B, N) of the same candidates; relevant if larger than 0.
        candidate_ids: (B, N) ids that break ties, -1 = padding; the columns when absent.

    Returns:
        (B, N) bool, best rank first; false beyond the last retrieved candidate.

    Raises:
        ValueError: the shapes differ or a score is NaN.
    """
    if ranking.dim() != 2 or relevance.shape != ranking.shape:
        raise ValueError(
            "ranking and relevance: expected two tensors of one shape (B, N), "
            f"got {tuple(ranking.shape)} and {tuple(relevance.shape)}"
        )
    if candidate_ids is None:
        candidate_ids = torch.arange(ranking.shape[1], device=ranking.device).expand_as(ranking)
    order, scores = _ordered(ranking, candidate_ids)
    return (relevance > 0).gather(1, order) & (scores > -torch.inf)


def best_rows(ranking: Tensor, candidate_ids: Tensor, depth: int) -> list[list[int]]:
    """Return the best candidates of each query, in the order in which the metrics rank them.

    Args:
        ranking: (B, N) score of each candidate, larger is better, -inf = not retrieved.
        candidate_ids: (B, N) rows in the passage store, -1 = padding.
        depth: number of candidates that are returned at most.

    Returns:
        B lists of rows, best first.

    Raises:
        ValueError: the shapes differ or a score is NaN.
    """
    order, scores = _ordered(ranking, candidate_ids)
    rows = candidate_ids.gather(1, order).masked_fill(scores == -torch.inf, -1)[:, :depth]
    return [[row for row in found if row >= 0] for found in rows.tolist()]


def _ordered(ranking: Tensor, candidate_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns (B, N), best first, and their scores in this order, -inf = none."""
    if candidate_ids.shape != ranking.shape:
        raise ValueError(
            f"candidate_ids: expected the shape of ranking, {tuple(ranking.shape)}, "
            f"got {tuple(candidate_ids.shape)}"
        )
    if ranking.isnan().any():
        raise ValueError("ranking: expected numbers, or -inf for what was not retrieved, got NaN")
    scores = ranking.detach().float().masked_fill(candidate_ids < 0, -torch.inf)  # (B, N)
    scores = scores + 0.0  # turns -0 into 0: some sorting kernels hold them apart
    by_id = candidate_ids.argsort(dim=1, descending=True, stable=True)  # (B, N)
    by_score = scores.gather(1, by_id).argsort(dim=1, descending=True, stable=True)  # (B, N)
    order = by_id.gather(1, by_score)  # (B, N)
    return order, scores.gather(1, order)


def _check(hits: Tensor, relevant_count: Tensor) -> None:
    """Refuse counts that cannot be those of the whole store."""
    if relevant_count.shape != hits.shape[:1]:
        raise ValueError(
            f"relevant_count: expected the shape ({hits.shape[0]},), "
            f"got {tuple(relevant_count.shape)}"
        )
    short = (hits.sum(dim=1) > relevant_count).nonzero().flatten()
    if short.numel():
        row = int(short[0])
        raise ValueError(
            f"relevant_count: query {row} of the batch has {int(hits[row].sum())} relevant "
            f"candidates, so at least as many in the store, got {int(relevant_count[row])}"
        )


def _check_depth(k: int) -> int:
    """Return `k`, which must be positive."""
    if k < 1:
        raise ValueError(f"k: expected a positive number of ranks, got {k}")
    return k


def recall_at_k(
    ranking: Tensor,
    relevance: Tensor,
    relevant_count: Tensor,
    k: int,
    *,
    candidate_ids: Tensor | None = None,
) -> Tensor:
    """Return the share of all relevant passages that stand among the first k (`recall_k`).

    Args:
        ranking: (B, N) score of each candidate, larger is better, -inf = not retrieved.
        relevance: (B, N) of the same candidates; relevant if larger than 0.
        relevant_count: (B,) relevant passages in the whole store.
        k: number of ranks that count, at least 1; it may exceed N.
        candidate_ids: (B, N) ids that break ties, -1 = padding; the columns when absent.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: a shape is wrong, a score is NaN, k is not positive, or more relevant candidates
            than `relevant_count` tells of.
    """
    hits = ranked_hits(ranking, relevance, candidate_ids)
    _check(hits, relevant_count)
    return hits[:, : _check_depth(k)].sum(dim=1).float() / relevant_count.clamp(min=1)


def precision_at_k(
    ranking: Tensor, relevance: Tensor, k: int, *, candidate_ids: Tensor | None = None
) -> Tensor:
    """Return the share of relevant passages among the first k (`P_k`); arguments as `recall_at_k`.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: as `recall_at_k`.
    """
    hits = ranked_hits(ranking, relevance, candidate_ids)
    return hits[:, : _check_depth(k)].sum(dim=1).float() / k


def success_at_k(
    ranking: Tensor, relevance: Tensor, k: int, *, candidate_ids: Tensor | None = None
) -> Tensor:
    """Return 1 if a relevant passage stands among the first k (`success_k`), else 0.

    Arguments as `recall_at_k`.

    Returns:
        (B,) float32 in {0, 1}.

    Raises:
        ValueError: as `recall_at_k`.
    """
    hits = ranked_hits(ranking, relevance, candidate_ids)
    return hits[:, : _check_depth(k)].any(dim=1).float()


def reciprocal_rank(
    ranking: Tensor, relevance: Tensor, *, candidate_ids: Tensor | None = None
) -> Tensor:
    """Return one over the rank of the first relevant passage, 0 without one (`recip_rank`).

    Arguments as `recall_at_k`.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: as `recall_at_k`.
    """
    hits = ranked_hits(ranking, relevance, candidate_ids)  # (B, N)
    first = hits & (hits.cumsum(dim=1) == 1)  # (B, N) at most one in a row
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)  # (N,)
    return (first / ranks).sum(dim=1)


def ndcg_at_k(
    ranking: Tensor,
    relevance: Tensor,
    relevant_count: Tensor,
    k: int,
    *,
    candidate_ids: Tensor | None = None,
) -> Tensor:
    """Return the normalised discounted cumulative gain of the first k ranks (`ndcg_cut_k`).

    DCG = sum over the ranks r with a relevant passage of 1 / log2(r + 1); it is divided by the DCG
    of a ranking that starts with all `relevant_count` relevant passages. Relevance is binary.
    Source: Järvelin and Kekäläinen 2002, with the discount of trec_eval's m_ndcg_cut.c.

    Relations: torchmetrics' `retrieval_normalized_dcg` knows the candidates' relevance alone.

    Arguments as `recall_at_k`.

    Returns:
        (B,) float32 in [0, 1].

    Raises:
        ValueError: as `recall_at_k`.
    """
    hits = ranked_hits(ranking, relevance, candidate_ids)  # (B, N)
    _check(hits, relevant_count)
    hits = hits[:, : _check_depth(k)]  # (B, min(k, N))
    # on the CPU, because CUDA's cumsum of floats is refused under deterministic algorithms
    discount = torch.arange(2, k + 2).float().log2().reciprocal()  # (k,)
    ideal = discount.cumsum(dim=0).to(hits.device)  # (k,) by number of relevant passages, from 1
    gain = (hits * discount[: hits.shape[1]].to(hits.device)).sum(dim=1)  # (B,)
    return gain / ideal[relevant_count.clamp(min=1, max=k) - 1]


def among(ids: Tensor, rows: Tensor) -> Tensor:
    """Return for each id whether it is one of `rows`.

    By bisection: a frequent answer stands in a large part of a store, which `torch.isin` would
    sort for every query.

    Args:
        ids: (N,) rows of the passage store, -1 = padding.
        rows: (R,) ascending, none negative; on any device.

    Returns:
        (N,) bool.
    """
    if not len(rows):
        return torch.zeros_like(ids, dtype=torch.bool)
    rows = rows.to(ids)
    places = torch.searchsorted(rows, ids.contiguous()).clamp(max=len(rows) - 1)  # (N,)
    return rows[places] == ids


def _of(predictions: Predictions, batch: RagBatch) -> Tensor:
    """Return the ranking, on the device of the batch."""
    return predictions.ranking.to(batch.relevance.device)


def _relevant_count(batch: RagBatch) -> Tensor:
    """Return how many relevant passages the whole store has for each query, (B,)."""
    counts = [len(rows) for rows in batch.relevant_rows]
    return torch.tensor(counts, dtype=torch.long, device=batch.relevance.device)


class Recall(QueryMean):
    """Mean recall of the first k candidates: "recall@k".

    Args:
        k: number of ranks that count.
    """

    def __init__(self, k: int) -> None:
        self.k = _check_depth(k)
        super().__init__(f"recall@{k}")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the recall of each query, (B,)."""
        return recall_at_k(
            _of(predictions, batch),
            batch.relevance,
            _relevant_count(batch),
            self.k,
            candidate_ids=batch.candidate_ids,
        )


class Precision(QueryMean):
    """Mean precision of the first k candidates: "precision@k".

    Args:
        k: number of ranks that count.
    """

    def __init__(self, k: int) -> None:
        self.k = _check_depth(k)
        super().__init__(f"precision@{k}")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the precision of each query, (B,)."""
        ranking = _of(predictions, batch)
        ids = batch.candidate_ids
        return precision_at_k(ranking, batch.relevance, self.k, candidate_ids=ids)


class Success(QueryMean):
    """Share of the queries with a relevant passage among the first k candidates: "success@k".

    Args:
        k: number of ranks that count.
    """

    def __init__(self, k: int) -> None:
        self.k = _check_depth(k)
        super().__init__(f"success@{k}")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the success of each query, (B,)."""
        ranking = _of(predictions, batch)
        ids = batch.candidate_ids
        return success_at_k(ranking, batch.relevance, self.k, candidate_ids=ids)


class AnswerRecall(QueryMean):
    """Share of the queries with an answer in one of the first k candidates: "answer_recall@k".

    The figure that DRO's paper (arXiv 2505.03075) calls Recall@k and DPR's (arXiv 2004.04906) top-k
    retrieval accuracy. It asks for `RagBatch.answer_rows`, where `Success` asks for the relevant
    passages: the two differ where the data set names these by id.

    Args:
        k: number of ranks that count.
    """

    def __init__(self, k: int) -> None:
        self.k = _check_depth(k)
        super().__init__(f"answer_recall@{k}")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the answer recall of each query, (B,)."""
        ids = batch.candidate_ids
        held = torch.zeros(ids.shape, dtype=torch.bool, device=ids.device)  # (B, N)
        for row, rows in enumerate(batch.answer_rows):
            held[row] = among(ids[row], rows)
        return success_at_k(_of(predictions, batch), held, self.k, candidate_ids=ids)


class ReciprocalRank(QueryMean):
    """Mean reciprocal rank of the first relevant passage among all candidates: "mrr"."""

    def __init__(self) -> None:
        super().__init__("mrr")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the reciprocal rank of each query, (B,)."""
        ranking = _of(predictions, batch)
        return reciprocal_rank(ranking, batch.relevance, candidate_ids=batch.candidate_ids)


class NDCG(QueryMean):
    """Mean nDCG of the first k candidates: "ndcg@k".

    Args:
        k: number of ranks that count.
    """

    def __init__(self, k: int) -> None:
        self.k = _check_depth(k)
        super().__init__(f"ndcg@{k}")

    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the nDCG of each query, (B,)."""
        return ndcg_at_k(
            _of(predictions, batch),
            batch.relevance,
            _relevant_count(batch),
            self.k,
            candidate_ids=batch.candidate_ids,
        )

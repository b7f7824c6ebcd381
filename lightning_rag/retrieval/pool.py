"""Which candidates queries choose from, and which of these they choose: rows and masks, no models.

Rows are rows of whatever is searched, M in all; -1 stands for none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def listed(rows: Tensor, lists: Sequence[Tensor]) -> Tensor:
    """Say which rows are in a query's list.

    Args:
        rows: (B, N).
        lists: B tensors of rows, (n_b,) each.

    Returns:
        (B, N) bool.
    """
    found = torch.zeros_like(rows, dtype=torch.bool)
    for number, (own, wanted) in enumerate(zip(rows, lists, strict=True)):
        if len(wanted):
            found[number] = torch.isin(own, wanted.to(own.device))
    return found


def best_columns(scores: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest scores.

    Args:
        scores: (B, N); -inf is never chosen.
        k: columns wanted.

    Returns:
        (B, K) best first, padded with -1.
    """
    best, columns = scores.topk(min(k, scores.shape[1]))
    columns = columns.masked_fill(best == -torch.inf, -1)
    return torch.nn.functional.pad(columns, (0, k - columns.shape[1]), value=-1)


def random_columns(scores: Tensor, k: int, seeds: Sequence[int]) -> Tensor:
    """Return k random columns of each query, by descending score.

    Args:
        scores: (B, N); -inf is never chosen.
        k: columns wanted.
        seeds: one for each query: its draw does not depend on the other queries.

    Returns:
        (B, K), padded with -1.
    """
    size = scores.shape[1]
    noise = torch.stack(
        [torch.rand(size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )
    noise = noise.to(scores).masked_fill(scores == -torch.inf, -torch.inf)  # (B, N)
    drawn = best_columns(noise, k)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for row, columns in enumerate(drawn):
        kept[row, columns[columns >= 0]] = True
    return best_columns(scores.masked_fill(~kept, -torch.inf), k)


def shared_pool(ranked: Tensor, total: int, size: int, replaced: float) -> Tensor:
    """Return a pool that all queries of a batch share: the nearest of each, then random rows.

    The first choice of every query comes before any second choice.

    Args:
        ranked: (B, R) rows that each query ranks first, best first, -1 = none; R may be 0.
        total: M, rows to draw from.
        size: N, rows of the pool, at most M.
        replaced: share of the pool that is drawn at random, whatever was ranked.

    Returns:
        (N,) distinct rows. The draw comes from torch's global generator.
    """
    kept = size - round(replaced * size)
    nearest = [row for row in dict.fromkeys(ranked.T.flatten().tolist()) if row >= 0][:kept]
    drawn = torch.randperm(total).tolist()
    return torch.tensor(list(dict.fromkeys([*nearest, *drawn]))[:size], device=ranked.device)


def take(vectors: Tensor, columns: Tensor) -> Tensor:
    """Return the vectors at the chosen columns.

    Args:
        vectors: (N, V, D), the same for all queries, or (B, N, V, D).
        columns: (B, K); -1 gives zeros.

    Returns:
        (B, K, V, D).
    """
    places = columns.clamp(min=0)
    queries = torch.arange(len(columns), device=columns.device)[:, None]
    chosen = vectors[places] if vectors.ndim == 3 else vectors[queries, places]
    return chosen * (columns >= 0)[:, :, None, None]


def best_rows(
    queries: Tensor, index: Tensor, excluded: Sequence[Tensor], size: int
) -> tuple[Tensor, Tensor]:
    """Return what of the whole index is nearest to each query by inner product, exactly.

    Args:
        queries: (B, D).
        index: (M, D) float32, vectors of all rows.
        excluded: B tensors of rows, (E_b,) each, that a query must not get.
        size: rows for each query.

    Returns:
        Rows (B, R), best first, padded with -1, and their scores (B, R) float32, padded with -inf;
        R is `size`, or M if that is smaller.
    """
    with torch.autocast(index.device.type, enabled=False):
        scores = queries.float() @ index.T  # (B, M)
    for row, gone in enumerate(excluded):
        scores[row, gone.to(scores.device)] = -torch.inf
    best, rows = scores.topk(min(size, len(index)))
    return rows.masked_fill(best == -torch.inf, -1), best

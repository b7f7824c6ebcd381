"""Positives and negatives out of scored candidates: the best and the worst, taking turns.

RUIE (arXiv 2409.11673), as released: of a query's scored candidates the best 3 are positives, and
the worst 16 are negatives unless they are positives. Both lists are shuffled once. Its o-th visit,
o = epoch + seed, takes one positive and P - 1 negatives,

    pos[o mod |pos|]  and  neg[(o (P - 1) + j) mod |neg|],  j = 0 .. P - 2

so that over the epochs all of them have their turn. (In the released code o stays at the seed.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def choose(
    scores: Tensor,
    offset: int,
    *,
    size: int,
    seeds: Tensor,
    positives: int = 3,
    negatives: int = 16,
    minimum: int = 3,
    floor: float = -math.inf,
) -> Tensor:
    """Choose a positive and `size` - 1 negatives for each query, by `select` and `rotate`.

    Args:
        scores: (B, N); -inf and NaN are candidates that were not scored.
        offset: o, which turn it is; it grows by 1 with every epoch.
        size: P, passages per query, at least 1.
        seeds: (B,) integers, one per query, such as its row: they decide the order in which its
            positives and negatives take their turns. The same seed gives the same order in any
            batch, process and epoch, and on any device.
        positives: most positives of a query, at least 1.
        negatives: most negatives of a query, at least 1.
        minimum: fewest candidates above the floor with which a query is used, at least 1.
        floor: see `select`.

    Returns:
        (B, P) long columns of `scores`, the positive first. A query with fewer than P - 1 negatives
        has all of them, and -1 in the places that are left. A row of -1 is a query that is left
        out: fewer than `minimum` candidates are above the floor, or it has no negative (P > 1).

    Raises:
        ValueError: shapes that do not fit, or numbers that are too small.

    Example:
        >>> scores = torch.tensor([[0.3, -torch.inf, 0.1, 0.7, 0.2, 0.9]])
        >>> choose(scores, 0, size=3, seeds=torch.tensor([5]), positives=1, negatives=1)
        tensor([[ 5,  2, -1]])
    """
    if size < 1 or minimum < 1:
        raise ValueError(f"size and minimum must be at least 1, got {size} and {minimum}")
    best, worst = select(scores, positives=positives, negatives=negatives, floor=floor)
    if seeds.shape != scores.shape[:1] or seeds.is_floating_point():
        raise ValueError(
            f"seeds must be integers (B,), here {tuple(scores.shape[:1])}, got {seeds.dtype} "
            f"{tuple(seeds.shape)}"
        )
    keys = torch.empty(len(seeds), positives + negatives)
    for row, seed in zip(keys, seeds.tolist(), strict=True):
        row.uniform_(generator=torch.Generator().manual_seed(seed))
    keys = keys.to(scores.device)
    positive = rotate(_shuffled(best, keys[:, :positives]), offset, 1)
    others = rotate(_shuffled(worst, keys[:, positives:]), offset * (size - 1), size - 1)
    unusable = (scores.isfinite() & (scores > floor)).sum(-1) < minimum
    if size > 1:
        unusable |= (worst < 0).all(-1)
    return torch.cat([positive, others], dim=-1).masked_fill(unusable.unsqueeze(-1), -1)


def select(
    scores: Tensor, *, positives: int = 3, negatives: int = 16, floor: float = -math.inf
) -> tuple[Tensor, Tensor]:
    """Select each query's best and worst scored candidates.

    Args:
        scores: (B, N); what is not finite was not scored. Of equal scores the first counts as
            better.
        positives: most positives of a query, at least 1.
        negatives: most negatives of a query, at least 1.
        floor: a candidate is a positive only with a score above it. RUIE takes 100 off the scores
            of candidates of another task, and -100 as the floor.

    Returns:
        Columns of `scores`, best first, -1 in places that are left: (B, `positives`) positives and
        (B, `negatives`) negatives, long. No candidate is both.

    Raises:
        ValueError: scores that are not (B, N), or numbers below 1.

    Example:
        >>> select(torch.tensor([[0.3, 0.1, 0.7, 0.9]]), positives=1, negatives=2)
        (tensor([[3]]), tensor([[0, 1]]))
    """
    if scores.dim() != 2:
        raise ValueError(f"scores must be (B, N), got {tuple(scores.shape)}")
    if positives < 1 or negatives < 1:
        raise ValueError(
            f"positives and negatives must be at least 1, got {positives} and {negatives}"
        )
    scored = scores.isfinite()
    order = scores.masked_fill(~scored, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    end = scored.sum(-1, keepdim=True)  # (B, 1)
    above = (scored & (scores > floor)).sum(-1, keepdim=True).clamp(max=positives)
    start = torch.maximum(above, end - negatives)
    return _stretch(order, 0 * end, above, positives), _stretch(order, start, end, negatives)


def rotate(columns: Tensor, start: int, count: int) -> Tensor:
    """Take `count` columns of each row in turn from `start` on, from the front again at the end.

    Args:
        columns: (B, C) integers; what a row has comes first, -1 stands in the places behind it.
        start: where to begin, modulo the number of columns that the row has.
        count: how many to take; none is taken twice.

    Returns:
        (B, count); -1 in places for which the row has nothing left.

    Raises:
        ValueError: columns that are not (B, C), or a negative count.

    Example:
        >>> rotate(torch.tensor([[10, 11, 12, 13], [20, 21, -1, -1]]), 6, 3)
        tensor([[12, 13, 10],
                [20, 21, -1]])
    """
    if columns.dim() != 2 or count < 0:
        raise ValueError(
            f"columns must be (B, C) and count at least 0, got {tuple(columns.shape)} and {count}"
        )
    have = (columns >= 0).sum(-1, keepdim=True)  # (B, 1)
    steps = torch.arange(count, device=columns.device)
    places = (start + steps) % have.clamp(min=1)  # (B, count)
    return columns.gather(-1, places).masked_fill(steps >= have, -1)


def _stretch(order: Tensor, start: Tensor, end: Tensor, size: int) -> Tensor:
    """Entries start .. end - 1 of each row of (B, N), and -1 up to `size` places."""
    ranks = start + torch.arange(size, device=order.device)  # (B, size)
    past = ranks >= end
    padded = torch.nn.functional.pad(order, (0, 1), value=-1)  # N may be 0
    return padded.gather(-1, ranks.masked_fill(past, order.shape[-1]))


def _shuffled(columns: Tensor, keys: Tensor) -> Tensor:
    """The entries of each row in the order of their keys, -1 behind them."""
    order = keys.masked_fill(columns < 0, torch.inf).argsort(dim=-1)
    return columns.gather(-1, order)

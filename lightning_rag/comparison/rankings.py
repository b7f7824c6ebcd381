"""Figures of two rankings of passages for one query: before training and after it.

A ranking is a list of ids, best first, each once. Relevance is a list of 0 and 1 beside it. Where
`lightning_rag.metrics.retrieval` has the same figure for tensors, the conventions are its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

PERSISTENCE = 0.9  # of rank_biased_overlap: the first 10 ranks have 86 % of the weight

Move = Literal["up", "same", "down", "found", "lost", "neither"]
MOVES: tuple[Move, ...] = ("found", "up", "same", "down", "lost", "neither")


def overlaps(one: Sequence[str], other: Sequence[str]) -> list[int]:
    """Return for each depth d, from 1, how many passages both rankings have among their first d.

    Args:
        one: a ranking.
        other: another, of any length; a depth beyond its end counts all that it has.

    Returns:
        As many counts as the longer one has ranks.

    Raises:
        ValueError: an id that occurs twice in a ranking.
    """
    places = {passage: rank for rank, passage in enumerate(other)}
    if len(places) < len(other) or len(set(one)) < len(one):
        raise ValueError("a ranking has an id twice; expected each once")
    counts = [0] * max(len(one), len(other))
    for rank, passage in enumerate(one):
        if passage in places:
            counts[max(rank, places[passage])] += 1
    for depth in range(1, len(counts)):
        counts[depth] += counts[depth - 1]
    return counts


def overlap_at_k(counts: Sequence[int], k: int) -> float:
    """Return the share of the first k passages that both rankings have among their first k.

    Args:
        counts: from `overlaps`; of two rankings that both end before k, their lengths count.
        k: number of ranks, 1 or more.

    Raises:
        ValueError: rankings without any passage, or k below 1.
    """
    if k < 1 or not counts:
        raise ValueError(f"k: expected 1 or more ranks of rankings with passages, got {k}")
    depth = min(k, len(counts))
    return counts[depth - 1] / depth


def rank_biased_overlap(
    counts: Sequence[int], shorter: int, persistence: float = PERSISTENCE
) -> float:
    """Return the rank-biased overlap of two rankings, extrapolated beyond their ends.

    RBO = (1 - p) sum over d of p^(d - 1) A_d, with A_d the share that the rankings have in common
    among their first d. Beyond the end of a ranking the agreement is taken to go on as it was:
    RBO_EXT of Webber, Moffat and Zobel 2010 (A similarity measure for indefinite rankings, ACM TOIS
    28(4)), equation 32. It is 1 for a ranking and itself, 0 for two without a common passage.

    Args:
        counts: from `overlaps`; its length is that of the longer ranking.
        shorter: length of the shorter ranking.
        persistence: p, in (0, 1): how probably a reader goes on to the next rank.

    Raises:
        ValueError: a ranking without any passage, or a persistence that is none.
    """
    longer, p = len(counts), persistence
    if not 0 < shorter <= longer:
        raise ValueError(
            f"shorter: expected a length from 1 to that of the other, {longer}, got {shorter}"
        )
    if not 0 < p < 1:
        raise ValueError(f"persistence: expected a number between 0 and 1, got {p}")
    at_shorter = counts[shorter - 1]
    total, weight = 0.0, 1.0
    for depth, common in enumerate(counts, 1):
        weight *= p  # p^depth
        # What the shorter ranking would have brought by now, had it gone on as before.
        more = at_shorter * max(0, depth - shorter) / shorter
        total += weight * (common + more) / depth
    at_end = (counts[-1] - at_shorter) / longer + at_shorter / shorter
    return (1 - p) / p * total + at_end * weight


def first_hit(relevance: Sequence[int]) -> int | None:
    """Return the rank of the first relevant passage, from 1, or None without one."""
    return next((rank for rank, flag in enumerate(relevance, 1) if flag), None)


def success_at_k(relevance: Sequence[int], k: int) -> float:
    """Return 1 if a relevant passage stands among the first k, else 0."""
    return float(any(relevance[:k]))


def recall_at_k(relevance: Sequence[int], relevant: int, k: int) -> float:
    """Return the share of all `relevant` passages of the store among the first k; 0 of none."""
    return sum(relevance[:k]) / max(relevant, 1)


def reciprocal_rank(relevance: Sequence[int]) -> float:
    """Return one over the rank of the first relevant passage, 0 without one."""
    rank = first_hit(relevance)
    return 0.0 if rank is None else 1 / rank


def moved(before: int | None, after: int | None) -> Move:
    """Return how the first relevant passage moved.

    Args:
        before: its rank in the first stage's order, from 1, None = not among what was recorded.
        after: its rank in the method's order.

    Returns:
        "up" (to a smaller rank), "same", "down"; "found" and "lost" where one of the orders has
        none; "neither" where none has.
    """
    if before is None or after is None:
        if before is None and after is None:
            return "neither"
        return "found" if before is None else "lost"
    if before == after:
        return "same"
    return "up" if after < before else "down"


def collapse(retrieved: Iterable[Sequence[str]]) -> tuple[int, float]:
    """Return how many different passages were retrieved at all, and the favourite's share.

    Args:
        retrieved: the passages of each query.

    Returns:
        (number of different passages, share of the queries that have the most retrieved one).

    Raises:
        ValueError: no query.
    """
    queries = 0
    times: Counter[str] = Counter()
    for passages in retrieved:
        queries += 1
        times.update(set(passages))
    if not queries:
        raise ValueError("retrieved: expected the passages of one query or more, got none")
    return len(times), max(times.values(), default=0) / queries

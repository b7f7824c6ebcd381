"""How far the rankings of an index that is not refreshed are from those of a fresh one."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_rag.methods.base import Method
from lightning_rag.metrics.neighbours import ranked_rows

PROBE = 64  # training queries that are looked up at most


def probe(method: Method) -> list[list[int]]:
    """Return the first k passages of some training queries, by the index as it is.

    The queries are spread evenly over the training set, and always the same. The method is to be
    in evaluation, so that it reads the index; it encodes the queries with the weights that it has.

    Returns:
        For each query rows of the passage store, best first, k of them or all that it may have.
    """
    size = len(method.data.splits.train)
    asked = min(size, PROBE)
    rows = [number * size // asked for number in range(asked)]
    given = method.retrieve(method.data.queries("train").batch(rows).to(method.device), method.k)
    return ranked_rows(given.candidate_ids, given.scores, method.k)


def overlap(stale: Sequence[Sequence[int]], fresh: Sequence[Sequence[int]]) -> float:
    """Return the mean share of passages that two rankings of each query have in common.

    Args:
        stale: for each of Q queries its first passages.
        fresh: the same by another index.

    Returns:
        The mean over the queries that have any passage, in [0, 1]; 1 where none has.

    Raises:
        ValueError: the numbers of queries differ.
    """
    pairs = [(set(one), set(other)) for one, other in zip(stale, fresh, strict=True)]
    shares = [len(one & other) / max(len(one), len(other)) for one, other in pairs if one or other]
    return sum(shares) / len(shares) if shares else 1.0

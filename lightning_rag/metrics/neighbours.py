"""What a query has in common with the passages that were retrieved for it.

The retrieval analysis of ETRAG (arXiv 2406.03790), as its release measures it: how many neighbours
carry the query's label, how many speak of its entities. The query's mentions are compared as
strings, as they stand: with their case, and anywhere in a text (the head "US" is in "RUSSIA"). A
figure named "pairwise" is the mean over all pairs of a query and one of its first n neighbours, its
namesake the share of the queries for which any of the first n will do. The release slices the
queries and not the neighbours where it takes the pairwise figures of the first n; this does not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_rag.types import Instance, Passage, Span


@dataclass(frozen=True)
class Shared:
    """What a query and one of its neighbours share."""

    label: bool  # the task says that the neighbour has the query's label, or an answer to it
    head_in_text: bool = False  # the query's head stands in the neighbour's text
    tail_in_text: bool = False
    head_mentioned: bool = False  # the query's head is the neighbour's head or tail
    tail_mentioned: bool = False

    @property
    def included(self) -> bool:
        """Whether an entity of the query stands in the neighbour's text."""
        return self.head_in_text or self.tail_in_text

    @property
    def covered(self) -> bool:
        """Whether an entity of the query is a mention of the neighbour."""
        return self.head_mentioned or self.tail_mentioned


# A mention stands in its own text, so with demonstrations the pairwise inclusion_or_label is the
# attribute share; they differ where the mentions of a passage are not cut out of its text.
_FIGURES: Mapping[str, Callable[[Shared], bool]] = {
    "head_inclusion": lambda pair: pair.head_in_text,
    "tail_inclusion": lambda pair: pair.tail_in_text,
    "entity_inclusion": lambda pair: pair.included,
    "entity_coverage": lambda pair: pair.covered,
    "inclusion_or_label": lambda pair: pair.included or pair.label,
    "coverage_or_label": lambda pair: pair.covered or pair.label,
}


def shared(query: Instance, passage: Passage, *, label: bool) -> Shared:
    """Compare a query with one neighbour.

    Args:
        query: the query; without head and tail it shares nothing but the label.
        passage: the neighbour; its mentions are those of its instance, where it has one.
        label: what the task says of the two (`Task.matches`).
    """
    head, tail = _mention(query, query.head), _mention(query, query.tail)
    theirs: set[str] = set()
    if passage.instance is not None:
        instance = passage.instance
        theirs = {_mention(instance, instance.head), _mention(instance, instance.tail)}
    return Shared(
        label=label,
        head_in_text=bool(head) and head in passage.text,
        tail_in_text=bool(tail) and tail in passage.text,
        head_mentioned=bool(head) and head in theirs,
        tail_mentioned=bool(tail) and tail in theirs,
    )


def label_agreement(pairs: Sequence[Sequence[Shared]], ks: Sequence[int]) -> dict[str, float]:
    """Return the share of pairs with the query's label, `label_agreement@n` for each n of `ks`.

    Args:
        pairs: for each query its neighbours, best first; lists of different lengths.
        ks: numbers of neighbours; one that no list reaches is left out.

    Raises:
        ValueError: a number below 1.
    """
    return {
        f"label_agreement@{n}": _share(pair.label for found in pairs for pair in found[:n])
        for n in _reached(pairs, ks)
    }


def entity_figures(pairs: Sequence[Sequence[Shared]], ks: Sequence[int]) -> dict[str, float]:
    """Return the figures about the entities of relation extraction, `<figure>@n`.

    - `head_inclusion`, `tail_inclusion`, `entity_inclusion`: share of the queries of which the
      head, the tail, either of them stands in the text of any of the first n neighbours;
    - `entity_coverage`: either of them is the head or the tail of any of the first n;
    - `inclusion_or_label`, `coverage_or_label`: any of the first n has one of these, or the label;
    - `pairwise_…`: of each of these, the share of pairs;
    - `attribute_share`: share of pairs with any of these in common.

    Arguments as `label_agreement`. A query without neighbours counts in the shares of queries.

    Raises:
        ValueError: a number below 1.
    """
    figures = {}
    for n in _reached(pairs, ks):
        top = [found[:n] for found in pairs]
        flat = [pair for found in top for pair in found]
        for name, holds in _FIGURES.items():
            figures[f"{name}@{n}"] = _share(any(map(holds, found)) for found in top)
            figures[f"pairwise_{name}@{n}"] = _share(map(holds, flat))
        figures[f"attribute_share@{n}"] = _share(
            pair.label or pair.included or pair.covered for pair in flat
        )
    return figures


def collapse(first: Sequence[int]) -> dict[str, float]:
    """Return how few passages take all the first places.

    Args:
        first: the row of each query's best neighbour.

    Returns:
        `distinct_top1`, how many passages are a best neighbour, and `most_frequent_top1`, the share
        of the queries that have the most frequent of them; nothing without queries.
    """
    if not first:
        return {}
    counts = Counter(first)
    return {
        "distinct_top1": float(len(counts)),
        "most_frequent_top1": max(counts.values()) / len(first),
    }


def confusion(labels: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Count the pairs of a query's and its best neighbour's label.

    Returns:
        {label of the query: {label of the neighbour: count}}, both in alphabetical order, without
        zeros.
    """
    counts: dict[str, dict[str, int]] = {}
    for (query, neighbour), count in sorted(Counter(labels).items()):
        counts.setdefault(query, {})[neighbour] = count
    return counts


def perplexity(weights: Tensor) -> Tensor:
    """Return exp(H(w)): among how many candidates a soft neighbour is spread.

    1 is a hard choice, N the mean of all candidates. With cosine distances and temperature 1, as
    published, the first soft neighbour of ETRAG stays close to N.

    Args:
        weights: (..., N) distributions.

    Returns:
        (...) float64 in [1, N].

    Raises:
        ValueError: a weight is negative or not finite.
    """
    weights = weights.detach().double()
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        raise ValueError("weights: expected distributions, got a negative or non-finite weight")
    entropy: Tensor = torch.special.entr(weights).sum(dim=-1)  # (...) nats; 0 log 0 = 0
    return entropy.exp()


def ranked_rows(candidate_ids: Tensor, scores: Tensor, depth: int) -> list[list[int]]:
    """Return the best candidates of each query.

    Args:
        candidate_ids: (B, N) rows in the passage store, -1 = padding.
        scores: (B, N) larger is better, -inf = may not be had.
        depth: number of candidates that are returned at most.

    Returns:
        B lists of rows, best first; of equal scores the earlier column comes first.

    Raises:
        ValueError: the shapes differ or a score is NaN.
    """
    if candidate_ids.dim() != 2 or scores.shape != candidate_ids.shape:
        raise ValueError(
            "candidate_ids and scores: expected two tensors of one shape (B, N), got "
            f"{tuple(candidate_ids.shape)} and {tuple(scores.shape)}"
        )
    scores = scores.detach().float()
    if bool(scores.isnan().any()):
        raise ValueError("scores: expected numbers, or -inf for what may not be had, got NaN")
    scores = scores.masked_fill(candidate_ids < 0, -torch.inf) + 0.0  # -0 becomes 0
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :depth]  # (B, depth)
    had = scores.gather(1, order) > -torch.inf  # (B, depth)
    rows = candidate_ids.gather(1, order).masked_fill(~had, -1)  # (B, depth)
    return [[row for row in found if row >= 0] for found in rows.tolist()]


def random_rows(size: int, depth: int, excluded: Sequence[int], draw: random.Random) -> list[int]:
    """Draw passages evenly and without repetition: a retriever that knows nothing.

    Args:
        size: passages in the store.
        depth: number of rows; fewer where the store has no more.
        excluded: distinct rows that may not be had.
        draw: where the randomness comes from.
    """
    # What is left of an even draw after some rows are struck out is an even draw of the others.
    drawn = draw.sample(range(size), min(size, depth + len(excluded)))
    return [row for row in drawn if row not in excluded][:depth]


def _mention(instance: Instance, span: Span | None) -> str:
    return "" if span is None else instance.text[span.start : span.end]


def _reached(pairs: Sequence[Sequence[Shared]], ks: Sequence[int]) -> list[int]:
    """Return the numbers that some query has so many neighbours for."""
    if any(n < 1 for n in ks):
        raise ValueError(f"ks: expected positive numbers, got {list(ks)}")
    longest = max(map(len, pairs), default=0)
    return [n for n in ks if n <= longest]


def _share(hits: Iterable[bool]) -> float:
    """Return the share of true ones; there is at least one."""
    values = list(hits)
    return sum(values) / len(values)

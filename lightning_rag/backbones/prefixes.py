"""Common beginnings of token sequences, so that a model reads them once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

Tokens = tuple[int, ...]


@dataclass
class Node:
    """Tokens that follow each other in all of some sequences, after the same beginning."""

    start: int  # number of tokens before them
    tokens: Tokens  # at least one
    sequences: list[int]  # numbers of the sequences that have them
    children: list[Node] = field(default_factory=list)  # what follows in these sequences


def prefix_forest(sequences: Sequence[Tokens], saving: int) -> list[Node]:
    """Cut sequences into nodes, so that a common beginning is in one node (a radix tree).

    Args:
        sequences: token sequences in any order, equal ones and empty ones allowed.
        saving: least number of tokens that a common node must save: another cut is another,
            smaller call of the model. At least 1.

    Returns:
        the nodes without a node before them. The nodes of a sequence, from there on, hold all its
        tokens in their order.
    """
    roots: list[Node] = []
    ordered = sorted(range(len(sequences)), key=lambda i: sequences[i])
    # Members in lexicographic order, where their tokens in no node begin, where they are known to
    # be equal up to, and where their nodes go.
    waiting = [(ordered, 0, 0, roots)] if ordered else []
    while waiting:
        members, begin, equal, siblings = waiting.pop()
        first, last = sequences[members[0]], sequences[members[-1]]
        equal = _common(first, last, equal)  # what the outermost have in common, all have
        if first == last:
            if begin < len(first):
                siblings.append(Node(begin, first[begin:], members))
            continue
        if (len(members) - 1) * (equal - begin) >= saving:
            node = Node(begin, first[begin:equal], members)
            siblings.append(node)
            siblings, begin = node.children, equal
        following: dict[Tokens, list[int]] = {}
        for i in members:
            following.setdefault(sequences[i][equal : equal + 1], []).append(i)
        waiting += [(group, begin, equal, siblings) for group in following.values()]
    return roots


def within_budget(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Put inputs of about the same length together, longest first.

    Args:
        lengths: tokens of each input.
        budget: padded tokens of a batch, its number of inputs times the longest of them; an input
            that is longer is a batch of its own.

    Yields:
        the numbers of the inputs of each batch.
    """
    ordered = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(ordered):
        count = max(budget // max(lengths[ordered[start]], 1), 1)
        yield ordered[start : start + count]
        start += count


def _common(a: Tokens, b: Tokens, known: int) -> int:
    """Return how many first tokens are equal, `known` of which are known to be."""
    shortest = min(len(a), len(b))
    while known < shortest and a[known] == b[known]:
        known += 1
    return known

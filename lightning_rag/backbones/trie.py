"""The allowed answers as a trie of tokens: where an answer's probability is decided.

At a node with one child nothing is decided, so its edge has probability 1. At a node with several
children the model's logits of these children alone are normalised. The probability of an answer is
the product along its path, and the answers' probabilities sum to 1 (constrained decoding of
De Cao et al. 2021, "Autoregressive Entity Retrieval", with all answers scored at once).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Trie:
    """The branching nodes of a set of token sequences.

    A node is known by its prefix, the tokens that lead to it. `rows` are the branching prefixes
    that no longer branching prefix contains: a decoder run over them visits every branching node.
    """

    rows: tuple[Tokens, ...]  # R prefixes; the root alone gives one empty prefix
    nodes: tuple[tuple[int, int], ...]  # N branching nodes: (row, length of the node's prefix)
    children: tuple[Tokens, ...]  # N: the tokens that may follow, ascending
    paths: tuple[tuple[tuple[int, int], ...], ...]  # per sequence: its (node, child) decisions


def build_trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """Build the trie of token sequences, each ending with an end-of-sequence token.

    Raises:
        ValueError: no sequence, an empty one, two equal ones, or one that is a prefix of another
            (an end-of-sequence token at the end of each prevents this).
    """
    if not sequences:
        raise ValueError("at least one allowed answer is needed, got none")
    following: dict[Tokens, set[int]] = {}
    for sequence in map(tuple, sequences):
        if not sequence:
            raise ValueError("an allowed answer must have at least one token, got none")
        for length, token in enumerate(sequence):
            following.setdefault(sequence[:length], set()).add(token)
    if len(set(map(tuple, sequences))) < len(sequences):
        raise ValueError("two allowed answers have the same tokens")
    if any(tuple(sequence) in following for sequence in sequences):
        raise ValueError("an allowed answer is a prefix of another: end each with a stop token")
    branching = [prefix for prefix, tokens in following.items() if len(tokens) > 1]
    rows = _maximal(branching)
    nodes: list[tuple[int, int]] = []
    children: list[Tokens] = []
    number: dict[Tokens, int] = {}
    for prefix in branching:
        row = next(i for i, other in enumerate(rows) if other[: len(prefix)] == prefix)
        number[prefix] = len(nodes)
        nodes.append((row, len(prefix)))
        children.append(tuple(sorted(following[prefix])))
    paths = tuple(
        tuple(
            (number[prefix], children[number[prefix]].index(token))
            for length, token in enumerate(sequence)
            if (prefix := tuple(sequence[:length])) in number
        )
        for sequence in sequences
    )
    return Trie(tuple(rows), tuple(nodes), tuple(children), paths)


def _maximal(prefixes: Sequence[Tokens]) -> list[Tokens]:
    """Return the prefixes that are not the beginning of another one, in the order given."""
    inner = {prefix[:length] for prefix in prefixes for length in range(len(prefix))}
    return [prefix for prefix in prefixes if prefix not in inner]

"""Fitting texts into a limit of tokens without cutting into what must survive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_rag.errors import UserError
from lightning_rag.types import Rendered


@dataclass
class Piece:
    """The tokens of one text, without special tokens."""

    ids: list[int]
    offsets: list[tuple[int, int]]  # characters [start, end) of each token
    rendered: Rendered

    def protected(self) -> list[bool]:
        """Whether each token lies in a span of the text."""
        spans = self.rendered.spans.values()
        return [any(inside(offset, span) for span in spans) for offset in self.offsets]

    def cut(self, limit: int, *, first: int = 0) -> Piece:
        """Return at most `limit` tokens, in their order.

        The tokens farthest from any span go first; without spans the head stays.

        Args:
            limit: tokens that may stay.
            first: number of characters at the text's start that stay in any case.

        Raises:
            UserError: the spans and the start alone have more tokens than the limit.
        """
        if len(self.ids) <= limit:
            return self
        protected = self.protected()
        head = sum(start < first for start, _ in self.offsets)
        needed = head + sum(protected[head:])
        if needed > limit:
            raise UserError(
                f"the entity mentions and labels of a text need {needed} tokens, "
                f"the limit leaves {limit}: raise the limit; text: {self.rendered.text[:80]!r}"
            )
        distances = _distances(protected)
        # Not before the spans' own: nearness to the start counts for nothing.
        distances[:head] = [0] * head
        nearest = sorted(range(len(self.ids)), key=lambda i: (distances[i], i))
        kept = sorted(nearest[:limit])
        return Piece([self.ids[i] for i in kept], [self.offsets[i] for i in kept], self.rendered)


def inside(offset: tuple[int, int], span: tuple[int, int]) -> bool:
    """Whether a token's characters and a span have at least one character in common."""
    return max(offset[0], span[0]) < min(offset[1], span[1])


def _distances(protected: Sequence[bool]) -> list[int]:
    """Number of tokens from each token to the nearest protected one; to the start if none is."""
    anchors = [i for i, flag in enumerate(protected) if flag] or [0]
    distances, nearest = [], 0
    for i in range(len(protected)):
        while nearest + 1 < len(anchors) and abs(anchors[nearest + 1] - i) <= abs(
            anchors[nearest] - i
        ):
            nearest += 1
        distances.append(abs(anchors[nearest] - i))
    return distances


@dataclass
class Fitted:
    """A query and passages that fit into a limit, and how many of them were cut or dropped."""

    query: Piece
    passages: list[Piece]
    truncated: int


def fit(
    query: Piece,
    passages: Sequence[Piece],
    limit: int,
    *,
    separator: int,
    passage_limit: int | None = None,
) -> Fitted:
    """Cut a query and its passages to `limit` tokens: the last passage first, the query last.

    A passage that would have to lose a protected token, or all of its tokens, is dropped whole.

    Args:
        query: the query's tokens.
        passages: the passages' tokens, best first.
        limit: tokens for all of them, without the special tokens around the whole.
        separator: further tokens that each passage costs.
        passage_limit: tokens of a single passage, None for no limit of its own.

    Raises:
        UserError: the query's spans alone exceed the limit, or a passage's its own limit.
    """
    cut = [p if passage_limit is None else p.cut(passage_limit) for p in passages]
    excess = len(query.ids) + sum(len(p.ids) + separator for p in cut) - limit
    while excess > 0 and cut:
        last = cut.pop()
        remaining = len(last.ids) - excess
        if remaining >= max(sum(last.protected()), 1):
            cut.append(last.cut(remaining))
            excess = 0
        else:
            excess -= len(last.ids) + separator
    changed = len(passages) - len(cut)
    changed += sum(len(a.ids) < len(b.ids) for a, b in zip(cut, passages, strict=False))
    if excess > 0:
        return Fitted(query.cut(limit), cut, changed + 1)
    return Fitted(query, cut, changed)

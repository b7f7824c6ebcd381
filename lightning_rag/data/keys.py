"""What a retriever reads of the passages of a large store: rendered when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import overload

from lightning_rag.data.cache import hash_texts
from lightning_rag.types import Passage, Rendered

SAMPLE = 20_000  # passages that a vocabulary is learned from, where there are more


class Keys(Sequence[str]):
    """The M keys of a store's passages; none is kept.

    Args:
        passages: M passages.
        render: what a retriever reads of one, such as a task's `key`.
    """

    def __init__(self, passages: Sequence[Passage], render: Callable[[Passage], Rendered]) -> None:
        self._passages = passages
        self._render = render

    def __len__(self) -> int:
        return len(self._passages)

    def __iter__(self) -> Iterator[str]:
        return (self._render(passage).text for passage in self._passages)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self._render(passage).text for passage in self._passages[row]]
        return self._render(self._passages[row]).text

    @cached_property
    def hash(self) -> str:
        """SHA-256 over all keys, as `hash_texts`; they are read once for it."""
        return hash_texts(self)


def sampled(texts: Sequence[str], size: int = SAMPLE) -> list[str]:
    """Return all texts, or `size` of them at equal distances where there are more."""
    if len(texts) <= size:
        return list(texts)
    return [texts[number * len(texts) // size] for number in range(size)]

"""Checks that the readers share: each raises one DataError with what came and what is legal."""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence

from lightning_rag.data.readers.base import Corpus
from lightning_rag.errors import DataError
from lightning_rag.types import Span


class UniqueIds:
    """Remembers where each id was first seen."""

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}

    def add(self, identity: str, where: str) -> None:
        """Take an id; `where` is its file and line.

        Raises:
            DataError: if the id was taken before; both places are named.
        """
        if identity in self._seen:
            raise DataError(
                f"{where}: id {identity!r} is already taken at {self._seen[identity]}; "
                "legal: every id once"
            )
        self._seen[identity] = where


def check_gold(corpus: Corpus, ids: Container[str]) -> None:
    """Check that the passages that the questions name are there.

    Args:
        corpus: where the passages come from, and what the questions name.
        ids: the ids of its passages.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in sorted(corpus.gold) if name not in ids]
    if missing:
        raise DataError(
            f"{corpus.file}: {len(missing)} of {len(corpus.gold)} passages that the questions call "
            f"positive are missing, first {missing[0]!r}; legal: the corpus that they were made "
            "with"
        )


def check_label(where: str, label: str, labels: Collection[str]) -> str:
    """Return the label if it is one of `labels`.

    Raises:
        DataError: if it is not.
    """
    if label not in labels:
        raise DataError(f"{where}: unknown label {label!r}; legal: {', '.join(labels)}")
    return label


def check_span(where: str, name: str, text: str, span: Span) -> Span:
    """Return the span if it holds at least one character of `text` that is no white space.

    Raises:
        DataError: if it does not.
    """
    if not 0 <= span.start < span.end <= len(text):
        raise DataError(
            f"{where}: {name} is [{span.start}, {span.end}) in a sentence of {len(text)} "
            f"characters; legal: 0 <= start < end <= {len(text)}"
        )
    if not text[span.start : span.end].strip():
        raise DataError(
            f"{where}: {name} [{span.start}, {span.end}) is only white space; "
            "legal: the words of an entity"
        )
    return span


def token_span(
    where: str, name: str, tokens: Sequence[str], first: int, last: int, kind: str = ""
) -> Span:
    """Return the characters of the tokens `first` to `last`, included, of tokens joined by a space.

    Raises:
        DataError: if there are no such tokens.
    """
    if not 0 <= first <= last < len(tokens):
        raise DataError(
            f"{where}: {name} is tokens {first} to {last} (last included) of {len(tokens)}; "
            f"legal: 0 <= first <= last < {len(tokens)}"
        )
    start = sum(len(token) + 1 for token in tokens[:first])
    length = len(" ".join(tokens[first : last + 1]))
    text = " ".join(tokens)
    return check_span(where, name, text, Span(start, start + length, kind))

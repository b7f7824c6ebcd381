"""Keyword tags: where the mentions of gold facts are, said in a text (RUIE, arXiv 2409.11673).

A reward model and a retriever's passages carry the tags, so that an encoder sees at once what a
demonstration demonstrates. The tags are ordinary words that the encoders learn (`TOKENS`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from lightning_rag.types import Mention

Tags = Literal["untyped", "typed", "none"]
Place = tuple[int, int, str]  # characters [start, end) of a text, and a type or ""

TOKENS = ("<Keyword>", "</Keyword>")


def locate(text: str, mentions: Iterable[Mention], *, parity: bool = False) -> list[Place]:
    """Return the places of mentions in a text, in ascending order, each once.

    A mention whose place is known and holds its text stands there. Any other (no place, or one that
    holds something else) stands where its text first occurs as a word of its own and nothing else
    is placed yet, longer ones first: repeated mentions are found one after the other, and `York` in
    `New York … York` is the second one. Where only covered occurrences are left it is the first of
    them; a mention that does not occur is left out.

    Args:
        text: the sentence.
        mentions: the mentions, in the order of the annotation.
        parity: as the released code does it: a known place counts unless a letter follows it; any
            other mention stands where it first occurs between two borders of words, so one that
            begins or ends with punctuation, such as `U.S.` or `$5`, is never found, and repeated
            ones stand on each other.

    Returns:
        (start, end, the mention's type) of each; they may nest and overlap.
    """
    known: list[Place] = []
    unknown: list[Mention] = []
    for mention in mentions:
        place = _known(text, mention)
        if place is None or (parity and text[place[1] : place[1] + 1].isalpha()):
            unknown.append(mention)
        else:
            known.append(place)
    found = list(known)
    for mention in sorted(unknown, key=lambda mention: -len(mention.text)):
        starts = _occurrences(text, mention.text, parity)
        free = [start for start in starts if not _covered(start, mention.text, found)]
        if starts:
            start = free[0] if free and not parity else starts[0]
            found.append((start, start + len(mention.text), mention.type))
    return sorted(set(found))


def tag(text: str, spans: Sequence[Place], tags: Tags) -> str:
    """Return a text with its keywords tagged, as `<Keyword> New York </Keyword>`.

    Spans that overlap or nest become one keyword, their union; those that only touch stay two. With
    "typed" the types stand before the words, `<Keyword> city: New York </Keyword>`, several of one
    keyword with commas between; a span without type is tagged as with "untyped". "none" leaves the
    text as it is.

    Args:
        text: the sentence.
        spans: places in it, in any order.
        tags: what is written.

    Raises:
        ValueError: a span is empty or reaches beyond the text.
    """
    return place(text, spans, tags)[0]


def place(text: str, spans: Sequence[Place], tags: Tags) -> tuple[str, list[tuple[int, int]]]:
    """Return what `tag` returns, and where each span's keyword stands in it, tags included.

    Raises:
        ValueError: a span is empty or reaches beyond the text.
    """
    for start, end, _ in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(
                f"span [{start}, {end}) of a text; legal: at least one character within "
                f"[0, {len(text)})"
            )
    if tags == "none":
        return text, [(start, end) for start, end, _ in spans]
    merged = _merged(spans)
    written, done, ranges = "", 0, []
    for start, end, types in merged:
        written += text[done:start]
        lead = f"{', '.join(types)}: " if tags == "typed" and types else ""
        keyword = f"{TOKENS[0]} {lead}{text[start:end]} {TOKENS[1]}"
        ranges.append((len(written), len(written) + len(keyword)))
        written, done = written + keyword, end
    where = [
        next(
            shown
            for (first, last, _), shown in zip(merged, ranges, strict=True)
            if first <= start and end <= last
        )
        for start, end, _ in spans
    ]
    return written + text[done:], where


def _known(text: str, mention: Mention) -> Place | None:
    """Return a mention's place if it is given and holds its text."""
    start, end = mention.start, mention.end
    if start is None or end is None or not 0 <= start < end:
        return None
    return (start, end, mention.type) if text[start:end] == mention.text else None


def _occurrences(text: str, words: str, parity: bool) -> list[int]:
    """Return where `words` begin in a text as words of their own, overlapping ones included."""
    if not words.strip():
        return []
    if parity:
        return [match.start() for match in re.finditer(rf"\b({re.escape(words)})\b", text)]
    # a border of words is asked for at a letter or digit only, so that "$5" and "(" are found
    before = r"(?<!\w)" if re.match(r"\w", words) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", words) else ""
    return [m.start() for m in re.finditer(f"(?={before}{re.escape(words)}{after})", text)]


def _covered(start: int, words: str, places: Sequence[Place]) -> bool:
    """Whether an occurrence has a character in common with a place."""
    return any(start < last and first < start + len(words) for first, last, _ in places)


def _merged(spans: Sequence[Place]) -> list[tuple[int, int, list[str]]]:
    """Return the unions of overlapping spans, ascending, with the types of each."""
    ordered = sorted(spans, key=lambda span: (span[0], -span[1]))
    merged: list[tuple[int, int, list[str]]] = []
    for start, end, kind in ordered:
        if merged and start < merged[-1][1]:
            first, last, types = merged.pop()
            start, end = first, max(last, end)
        else:
            types = []
        if kind and kind not in types:
            types = [*types, kind]
        merged.append((start, end, types))
    assert all(a[1] <= b[0] for a, b in pairwise(merged))
    return merged

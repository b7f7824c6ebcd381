"""Entity markers: where the two mentions of a sentence are, said in its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from lightning_rag.types import Instance, Rendered, Span

Markers = Literal["punctuation", "tags", "clauses", "none"]


class _Mark(NamedTuple):
    """One marker; the order of the fields is the order in which markers are written."""

    position: int  # of the sentence
    opens: bool  # what ends here is closed before the next mention opens
    far_end: int  # negated: the longer mention opens first and closes last
    order: int  # of two equal mentions the head is the outer one
    text: str


def mentions(instance: Instance) -> tuple[Span, Span]:
    """Return the spans of head and tail.

    Raises:
        ValueError: one is missing, empty or outside the sentence.
    """
    if instance.head is None or instance.tail is None:
        raise ValueError(f"instance {instance.id!r} lacks the span of its head or of its tail")
    for name, span in (("head", instance.head), ("tail", instance.tail)):
        if not 0 <= span.start < span.end <= len(instance.text):
            raise ValueError(
                f"instance {instance.id!r}: {name} is [{span.start}, {span.end}); legal: at least "
                f"one character within [0, {len(instance.text)})"
            )
    return instance.head, instance.tail


def mention_texts(instance: Instance) -> tuple[str, str]:
    """Return the texts of head and tail."""
    head, tail = mentions(instance)
    return instance.text[head.start : head.end], instance.text[tail.start : tail.end]


def bare(instance: Instance) -> Rendered:
    """Return the sentence as it is, with the ranges of its mentions."""
    head, tail = mentions(instance)
    return Rendered(instance.text, {"head": (head.start, head.end), "tail": (tail.start, tail.end)})


def paired(instance: Instance) -> Rendered:
    """Return the two mentions alone, as `Bill, Hawaii`, with their ranges."""
    head, tail = mention_texts(instance)
    start = len(head) + len(", ")
    return Rendered(f"{head}, {tail}", {"head": (0, len(head)), "tail": (start, start + len(tail))})


def marked(instance: Instance, markers: Markers) -> Rendered:
    """Return the sentence with its two mentions marked.

    - "punctuation": `@ Bill @ lives in # Hawaii #.`, with entity types
      `@ * person * Bill @ lives in # ^ city ^ Hawaii #.` (Zhou and Chen 2022, arXiv 2102.01373);
    - "tags": `<e1>Bill</e1> lives in <e2>Hawaii</e2>.` (SemEval-2010 task 8);
    - "clauses": `The subject is Bill . The object is Hawaii . Bill lives in Hawaii.`, with entity
      types `… Bill is of type person . Hawaii is of type city . …` before the sentence (SuRE, arXiv
      2205.09837, and ETRAG, arXiv 2406.03790; the wording is ours);
    - "none": `Bill lives in Hawaii. Relation of Bill to Hawaii?`, the types before the names.

    The ranges "head" and "tail" are the mentions without their own markers; of two overlapping
    mentions, a range can contain a marker of the other. With "clauses" and "none" they are those of
    the clauses that name them and of the closing question, because nothing in the sentence itself
    says which mention is meant.

    Raises:
        ValueError: the instance lacks a valid span.
    """
    if markers == "none":
        return _question(instance)
    if markers == "clauses":
        return _clauses(instance)
    return _insert(instance, _punctuation if markers == "punctuation" else _tags)


def type_words(span: Span) -> str:
    """Return the entity type as words: STATE_OR_PROVINCE becomes "state or province"."""
    return " ".join(span.type.replace("_", " ").lower().split())


def _question(instance: Instance) -> Rendered:
    text = f"{instance.text} Relation of "
    spans: dict[str, tuple[int, int]] = {}
    named = zip(("head", "tail"), mentions(instance), mention_texts(instance), strict=True)
    for name, span, mention in named:
        kind = type_words(span)
        text += f"{kind} " if kind else ""
        spans[name] = (len(text), len(text) + len(mention))
        text += mention + (" to " if name == "head" else "?")
    return Rendered(text, spans)


def _clauses(instance: Instance) -> Rendered:
    """Write the clauses; a mention stands between spaces, so that it shares no token with them."""
    text = ""
    spans: dict[str, tuple[int, int]] = {}
    named = mention_texts(instance)
    for name, role, mention in zip(("head", "tail"), ("subject", "object"), named, strict=True):
        text += f"The {role} is "
        spans[name] = (len(text), len(text) + len(mention))
        text += f"{mention} . "
    for span, mention in zip(mentions(instance), named, strict=True):
        kind = type_words(span)
        text += f"{mention} is of type {kind} . " if kind else ""
    return Rendered(text + instance.text, spans)


def _tags(name: str, span: Span) -> tuple[str, str]:
    tag = "e1" if name == "head" else "e2"
    return f"<{tag}>", f"</{tag}>"


def _punctuation(name: str, span: Span) -> tuple[str, str]:
    outer, inner = ("@", "*") if name == "head" else ("#", "^")
    kind = type_words(span)
    return (f"{outer} {inner} {kind} {inner} " if kind else f"{outer} "), f" {outer}"


def _insert(instance: Instance, style: Callable[[str, Span], tuple[str, str]]) -> Rendered:
    """Write the markers into the sentence; the mentions may touch, nest, overlap or be equal."""
    spans: Mapping[str, Span] = dict(zip(("head", "tail"), mentions(instance), strict=True))
    marks: list[_Mark] = []
    for order, (name, span) in enumerate(spans.items()):
        before, after = style(name, span)
        marks.append(_Mark(span.start, True, -span.end, order, before))
        marks.append(_Mark(span.end, False, -span.start, -order, after))
    marks.sort()
    spaced = style is _punctuation
    written = [_spaced(marks, i, instance.text) if spaced else m for i, m in enumerate(marks)]

    text, done = "", 0
    for mark in written:
        text += instance.text[done : mark.position] + mark.text
        done = mark.position
    text += instance.text[done:]

    def place(index: int) -> int:  # where the sentence's character `index` came to stand
        return index + sum(len(mark.text) for mark in written if mark.position <= index)

    return Rendered(
        text,
        {name: (place(span.start), place(span.end - 1) + 1) for name, span in spans.items()},
    )


def _spaced(marks: list[_Mark], i: int, sentence: str) -> _Mark:
    """Return marker `i`, kept apart by a space from a word or a marker that it would touch."""
    mark = marks[i]
    at = mark.position
    if mark.opens:
        after_close = i > 0 and marks[i - 1].position == at and not marks[i - 1].opens
        first = i == 0 or marks[i - 1].position < at
        in_word = first and at > 0 and sentence[at - 1].isalnum()
        return mark._replace(text=" " + mark.text) if after_close or in_word else mark
    last = i + 1 == len(marks) or marks[i + 1].position > at
    in_word = last and at < len(sentence) and sentence[at].isalnum()
    return mark._replace(text=mark.text + " ") if in_word else mark

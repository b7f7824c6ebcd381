"""The passage store: what can be retrieved, and what a query must never see in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lightning_rag.data.cache import hash_texts
from lightning_rag.data.passage_folder import PassageFolder
from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, Instance, Passage, Span

SHOWN = 10  # ids named in a message


class PassageStore:
    """All M passages in a fixed order; a passage's row is its number in this order.

    Args:
        passages: the passages, with ids that occur once. Those of a `PassageFolder` stay on disk.

    Raises:
        DataError: no passage, or an id that occurs more than once.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self.passages: Sequence[Passage]
        self._rows: Mapping[str, int]
        if isinstance(passages, PassageFolder):  # its ids were checked when it was written
            self.passages, self._rows = passages, passages.rows
            return
        self.passages = tuple(passages)
        if not self.passages:
            raise DataError("the passage store is empty; at least one passage is needed")
        self._rows = {passage.id: row for row, passage in enumerate(self.passages)}
        if len(self._rows) < len(self.passages):
            twice = [p.id for row, p in enumerate(self.passages) if self._rows[p.id] != row]
            raise DataError(
                f"passage ids must occur once; more than once: {_listed(dict.fromkeys(twice))}"
            )

    @classmethod
    def from_instances(cls, instances: Sequence[Instance]) -> PassageStore:
        """Build a store of demonstrations, one for each labelled instance."""
        return cls([Passage(id=i.id, text=i.text, instance=i) for i in instances])

    def __len__(self) -> int:
        return len(self.passages)

    def __getitem__(self, row: int) -> Passage:
        return self.passages[row]

    def __iter__(self) -> Iterator[Passage]:
        return iter(self.passages)

    def row(self, passage_id: str) -> int:
        """Return the row of a passage.

        Raises:
            KeyError: the store has no passage of this id.
        """
        return self._rows[passage_id]

    def __contains__(self, passage_id: object) -> bool:
        return passage_id in self._rows

    @property
    def on_disk(self) -> bool:
        """Whether the passages stay on disk. Then none of them is a demonstration."""
        return isinstance(self.passages, PassageFolder)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids, texts, titles, gold mentions and labels, in the order of the rows."""
        if isinstance(self.passages, PassageFolder):
            return self.passages.fingerprint
        return hash_texts(part for passage in self.passages for part in _parts(passage))


def _parts(passage: Passage) -> Iterator[str]:
    yield from (passage.id, passage.title, passage.text)
    if passage.instance is not None:
        answers = passage.instance.answers
        yield from ("demonstration", str(len(answers)), *answers)
        for span in (passage.instance.head, passage.instance.tail):
            yield "" if span is None else f"{span.start} {span.end} {span.type}"
        if passage.instance.task or passage.instance.held_out:
            yield from ("task", passage.instance.task, str(passage.instance.held_out))
        if passage.instance.extraction is not None:
            yield from _extraction_parts(passage.instance.extraction)


def _extraction_parts(extraction: Extraction) -> Iterator[str]:
    yield from ("extraction", extraction.kind, str(len(extraction.schema)), *extraction.schema)
    trigger = () if extraction.trigger is None else (extraction.trigger,)
    yield from (str(len(trigger)), str(len(extraction.facts)))
    for fact in trigger + extraction.facts:
        yield from (fact.type, str(len(fact.mentions)))
        for mention in fact.mentions:
            yield from (mention.text, f"{mention.start} {mention.end} {mention.type}")


def check_no_leak(store: PassageStore, held_out: Mapping[str, Sequence[Instance]]) -> int:
    """Check that no record of a held-out split is among the demonstrations of the store.

    The same record is the same id, or the same text of the same task with the same head and tail
    mentions, up to case and white space. The same text with other mentions is another record
    (SemEval-2010 Task 8 has 16 such sentences in both of its splits): these are counted only.
    Passages that are no demonstrations carry no label and are not checked.

    Args:
        store: the passage store.
        held_out: split name -> its instances.

    Returns:
        Number of held-out instances whose text alone is in the store.

    Raises:
        UserError: a held-out record is in the store; the message names the ids.
    """
    if store.on_disk:
        return 0
    demonstrations = [p.instance for p in store.passages if p.instance is not None]
    ids = {instance.id for instance in demonstrations}
    records = {_record(instance): instance.id for instance in demonstrations}
    texts = {normalise(instance.text) for instance in demonstrations}
    same_text = 0
    for split, instances in held_out.items():
        by_id = [i.id for i in instances if i.id in ids]
        if by_id:
            raise UserError(
                f"{len(by_id)} ids of the {split} split are also demonstrations in the passage "
                f"store: {_listed(by_id)}; an id may stand in one split only"
            )
        by_record = [(i.id, records[_record(i)]) for i in instances if _record(i) in records]
        if by_record:
            pairs = [f"{mine} (= {theirs})" for mine, theirs in by_record]
            raise UserError(
                f"{len(by_record)} instances of the {split} split are also demonstrations in the "
                f"passage store, under another id: {_listed(pairs)}; remove them from one side"
            )
        same_text += sum(normalise(i.text) in texts for i in instances)
    return same_text


def exclusions(queries: Sequence[Instance], store: PassageStore) -> list[NDArray[np.int64]]:
    """Return the rows that each training query must not retrieve.

    These are its own demonstration and every passage with the same text up to case and white
    space, which may carry the query's label.

    Args:
        queries: Q training instances.
        store: the passage store.

    Returns:
        Q ascending arrays of rows, of different lengths, possibly empty.
    """
    # Of the queries' texts alone: all texts of a large store would not fit into memory.
    by_text: dict[str, list[int]] = {normalise(query.text): [] for query in queries}
    for row, passage in enumerate(store.passages):
        same = by_text.get(normalise(passage.text))
        if same is not None:
            same.append(row)
    excluded = []
    for query in queries:
        rows = set(by_text[normalise(query.text)])
        # The ids of a text collection and of its questions are two different worlds.
        if query.id in store and store[store.row(query.id)].instance is not None:
            rows.add(store.row(query.id))
        excluded.append(np.array(sorted(rows), dtype=np.int64))
    return excluded


def _record(instance: Instance) -> tuple[str, ...]:
    """Return an instance's text with its head marked, and with its tail marked, normalised.

    Marks instead of offsets, so that other white space does not make another record. What else
    tells records of one text apart, task and event trigger, follows.
    """
    record = [_marked(instance.text, instance.head), _marked(instance.text, instance.tail)]
    record.append(instance.task)
    asked = instance.extraction
    if asked is not None and asked.trigger is not None:
        (mention,) = asked.trigger.mentions
        known = mention.start is not None and mention.end is not None
        span = Span(mention.start or 0, mention.end or 0) if known else None
        record += [asked.trigger.type, mention.text, _marked(instance.text, span)]
    return tuple(record)


def _marked(text: str, span: Span | None) -> str:
    if span is None:
        return normalise(text)
    start, end = span.start, span.end
    return normalise(f"{text[:start]}\0{text[start:end]}\0{text[end:]}")


def _listed(ids: Iterable[str]) -> str:
    names = list(ids)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more

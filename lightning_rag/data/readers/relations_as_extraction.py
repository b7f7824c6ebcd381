"""Relation extraction data sets as tasks of unified information extraction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.extraction import (
    check_words,
    extraction_instance,
    spaced,
    without_repeats,
)
from lightning_rag.data.splits import Splits
from lightning_rag.errors import UserError
from lightning_rag.types import Extraction, Fact, Instance, Mention, Span

_DIRECTED = re.compile(r"(.+)\((e1,e2|e2,e1)\)")


class RelationsAsExtraction(Reader):
    """The records of another reader, each a sentence with two entities, read for extraction.

    The task is "RE_<name>": which relations a sentence states, between which words. What the data
    set says of one sentence becomes one record, so a sentence that stands there with several pairs
    or labels has several facts. A label that ends in "(e1,e2)" or "(e2,e1)", as SemEval-2010 Task 8
    has them, is one relation whose direction says which entity is written first. Training sentences
    that are in validation or test too are left out (`without_repeats`).

    The data set annotated the pairs that it asks about and no others, so a sentence may state more
    than its facts.

    Args:
        reader: reads the data set; its splits stay.
        name: the data set's name in the task's.
        no_relation: the label of pairs without a relation, whose record says that there is nothing
            to extract; None where each pair has a relation.
        labels: relation -> its words, which become the schema in this order. None: all of them,
            worded as the data set does, else their names spaced and in lower case.

    Raises:
        UserError: the words of a label are blank or another label's.
    """

    def __init__(
        self,
        reader: Reader,
        name: str,
        no_relation: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        if labels is not None:
            check_words("labels", labels)
        self.reader = reader
        self.name = name
        self.no_relation = no_relation
        self.labels = labels

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the other data set and turn its pairs into facts of sentences."""
        splits = self.reader.read(root, seed)
        if splits.passages:
            raise UserError(
                f"the data set read for {self.name!r} has a passage store of its own; legal: one "
                "whose demonstrations are its training sentences"
            )
        words = self._words(splits)
        parts = {
            split: tuple(self._merged(split, getattr(splits, split), words))
            for split in ("train", "validation", "test")
        }
        train = without_repeats(self.name, *parts.values())
        return Splits(train, parts["validation"], parts["test"])

    def _words(self, splits: Splits) -> Mapping[str, str]:
        """Return relation -> words, and check that the data set's relations are among them."""
        if self.no_relation is not None and self.no_relation not in splits.labels:
            raise UserError(
                f"no_relation is {self.no_relation!r}; legal: null, {', '.join(splits.labels)}"
            )
        kept = [label for label in splits.labels if label != self.no_relation]
        relations = list(dict.fromkeys(_directed(label)[0] for label in kept))
        words = self.labels
        if words is None:
            words = {name: splits.wording.get(name, spaced(name)) for name in relations}
            check_words(f"labels of {self.name}", words)
        missing = [name for name in relations if name not in words]
        if missing:
            raise UserError(f"labels has no words for {', '.join(missing)}; legal: all relations")
        return words

    def _merged(
        self, split: str, instances: Sequence[Instance], words: Mapping[str, str]
    ) -> list[Instance]:
        """Return one record for each sentence, in the order in which they first come."""
        by_text: dict[str, dict[Fact, None]] = {}
        for instance in instances:
            facts = by_text.setdefault(instance.text, {})
            if instance.answers != (self.no_relation,):
                facts[_fact(instance, words)] = None
        schema = tuple(words.values())
        return [
            extraction_instance(
                f"RE_{self.name}", split, n, text, Extraction("relations", schema, tuple(facts))
            )
            for n, (text, facts) in enumerate(by_text.items())
        ]


def _directed(label: str) -> tuple[str, bool]:
    """Return a label's relation, and whether the second entity is its first argument."""
    found = _DIRECTED.fullmatch(label)
    return (label, False) if found is None else (found[1], found[2] == "e2,e1")


def _fact(instance: Instance, words: Mapping[str, str]) -> Fact:
    if instance.head is None or instance.tail is None or len(instance.answers) != 1:
        raise UserError(
            f"instance {instance.id!r} is not a pair of entities with a label; legal: the records "
            "of a relation extraction data set"
        )
    relation, turned = _directed(instance.answers[0])
    pair = [_mention(instance.text, span) for span in (instance.head, instance.tail)]
    return Fact(words[relation], tuple(pair[::-1] if turned else pair))


def _mention(text: str, span: Span) -> Mention:
    return Mention(text[span.start : span.end], span.start, span.end, span.type)

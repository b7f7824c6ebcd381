"""Re-DocRED (Tan et al. 2022): the facts that a single sentence can state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import token_span
from lightning_rag.data.readers.extraction import (
    check_words,
    extraction_instance,
    without_repeats,
)
from lightning_rag.data.readers.jsonl import Record, json_document
from lightning_rag.data.splits import Splits, hold_out
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, Fact, Instance, Mention

TASK = "RE_redocred"
# Properties of DocRED that the names which FewRel ships do not have.
_NAMES: Mapping[str, str] = {
    "P569": "date of birth",
    "P570": "date of death",
    "P571": "inception",
    "P576": "dissolved",
    "P577": "publication date",
    "P580": "start time",
    "P582": "end time",
    "P585": "point in time",
    "P1198": "unemployment rate",
}


class RedocredSentences(Reader):
    """Sentences of annotated Wikipedia documents that mention two entities or more.

    The files have documents: "title", "sents" (lists of tokens), "vertexSet" (entities, each a list
    of mentions with "sent_id", "pos" [first, last + 1) and "type") and "labels" ("r", a Wikidata
    property, between the entities "h" and "t"). A fact of a document is one of each sentence that
    mentions both entities, at their first mentions there; annotators name evidence for half of the
    facts only, so whether that very sentence states it is not known. Facts with the same words
    come once. Sentences without facts stay: there is nothing to extract from them.

    The released training file is large; here the development documents are cut into training and
    validation by document and seed. Training sentences that are in validation or test too are left
    out (`without_repeats`).

    Args:
        folder: holds the files; absolute or relative to the data root.
        train: file that training and validation are cut from.
        test: file of the test split.
        names: JSON file of property: name, or of property: [name, description] as FewRel ships it.
        validation_fraction: share of the documents of `train` that becomes the validation split.
        relations: so many relations, those with the most facts in the training documents, make up
            the schema; facts of others are left out. None: all 96, which are more words than the
            sentences have.

    Raises:
        UserError: `relations` below 1.
    """

    def __init__(
        self,
        folder: str = "redocred",
        train: str = "dev_revised.json",
        test: str = "test_revised.json",
        names: str = "fewrel/pid2name.json",
        validation_fraction: float = 0.1,
        relations: int | None = None,
    ) -> None:
        if relations is not None and relations < 1:
            raise UserError(f"relations is {relations}; legal: 1 or more, or null")
        self.folder = folder
        self.files = {"train": train, "test": test}
        self.names = names
        self.validation_fraction = validation_fraction
        self.relations = relations

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read both files and cut the validation documents off by seed."""
        names = _names(locate(root, self.names))
        documents = {
            split: _documents(locate(root, f"{self.folder}/{file}"), names)
            for split, file in self.files.items()
        }
        official = documents["train"]
        whole = [Instance(str(number), "") for number in range(len(official))]
        kept, held = hold_out(whole, self.validation_fraction, seed)
        found = {
            "train": [s for i in kept for s in official[int(i.id)]],
            "validation": [s for i in held for s in official[int(i.id)]],
            "test": [sentence for document in documents["test"] for sentence in document],
        }
        every = sorted({f.type for part in found.values() for s in part for f in s.facts})
        counts = Counter(fact.type for sentence in found["train"] for fact in sentence.facts)
        ranked = sorted(every, key=lambda name: (-counts[name], name))
        schema = tuple(ranked[: self.relations])
        parts = {
            split: tuple(
                extraction_instance(
                    TASK,
                    split,
                    number,
                    sentence.text,
                    Extraction("relations", schema, sentence.of(schema)),
                )
                for number, sentence in enumerate(sentences)
            )
            for split, sentences in found.items()
        }
        train = without_repeats("redocred", *parts.values())
        return Splits(train, parts["validation"], parts["test"])


@dataclass(frozen=True)
class _Sentence:
    text: str
    facts: tuple[Fact, ...]

    def of(self, schema: tuple[str, ...]) -> tuple[Fact, ...]:
        """Return the facts whose relation is in the schema."""
        return tuple(fact for fact in self.facts if fact.type in schema)


def _names(path: Path) -> Mapping[str, str]:
    document = json_document(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: legal: a JSON object of property: name or [name, description]")
    record = Record(str(path), document)
    names = {
        name: record.string(name) if isinstance(value, str) else record.strings(name)[0]
        for name, value in document.items()
    }
    return {**_NAMES, **names}


def _documents(path: Path, names: Mapping[str, str]) -> list[list[_Sentence]]:
    """Read the sentences with two entities or more of each document."""
    items = json_document(path)
    if not isinstance(items, list) or not items:
        raise DataError(f"{path}: legal: a JSON list of at least one document")
    documents = []
    for number, item in enumerate(items):
        where = f"{path}: document {number} (from 0)"
        if not isinstance(item, dict):
            raise DataError(f"{where}: {item!r}; legal: a JSON object")
        documents.append(_sentences(Record(where, item), names))
    used = {label["r"] for item in items for label in item["labels"]}
    check_words(f"{path}: names of relations", {label: names[label] for label in sorted(used)})
    return documents


def _sentences(record: Record, names: Mapping[str, str]) -> list[_Sentence]:
    tokens, entities = _tokens(record), _entities(record)
    mentions = _mentions(entities, tokens)  # of each sentence: entity -> its first mention
    facts: list[dict[tuple[str, ...], Fact]] = [{} for _ in tokens]
    for label in record.objects("labels", empty=True):
        relation = label.string("r")
        if relation not in names:
            raise label.error(f"property {relation!r} has no name; legal: one of `names`")
        pair = [_entity(label, key, len(entities)) for key in ("h", "t")]
        for found, own in zip(facts, mentions, strict=True):
            if all(entity in own for entity in pair):
                fact = Fact(names[relation], (own[pair[0]], own[pair[1]]))
                found.setdefault((fact.type, *(m.text for m in fact.mentions)), fact)
    return [
        _Sentence(" ".join(words), tuple(found.values()))
        for words, found, own in zip(tokens, facts, mentions, strict=True)
        if len(own) > 1
    ]


def _tokens(record: Record) -> list[tuple[str, ...]]:
    legal = "a list of lists of strings"
    sentences = record.value("sents", legal)
    if not isinstance(sentences, list):
        raise record.mismatch("sents", sentences, legal)
    return [
        Record(f"{record.where}: sentence {number} (from 0)", {"sents": words}).strings("sents")
        for number, words in enumerate(sentences)
    ]


def _entities(record: Record) -> list[list[Record]]:
    """Return the mentions of each entity."""
    legal = "a list of lists of mentions"
    entities = record.value("vertexSet", legal)
    if not isinstance(entities, list):
        raise record.mismatch("vertexSet", entities, legal)
    return [
        Record(f"{record.where}: entity {number} (from 0)", {"vertexSet": e}).objects("vertexSet")
        for number, e in enumerate(entities)
    ]


def _mentions(
    entities: Sequence[Sequence[Record]], tokens: Sequence[tuple[str, ...]]
) -> list[dict[int, Mention]]:
    """Return, for each sentence, the first mention of each entity that it mentions."""
    found: list[dict[int, Mention]] = [{} for _ in tokens]
    starts: dict[tuple[int, int], int] = {}
    for number, entity in enumerate(entities):
        for mention in entity:
            place = mention.integer("sent_id")
            if not 0 <= place < len(tokens):
                raise mention.error(f"sent_id is {place}; legal: 0 to {len(tokens) - 1}")
            first, last = _position(mention)
            span = token_span(mention.where, "a mention", tokens[place], first, last - 1)
            if span.start < starts.get((place, number), span.start + 1):
                starts[place, number] = span.start
                words = " ".join(tokens[place][first:last])
                kind = mention.string("type")
                found[place][number] = Mention(words, span.start, span.end, kind)
    return found


def _entity(record: Record, key: str, entities: int) -> int:
    number = record.integer(key)
    if not 0 <= number < entities:
        raise record.error(f"{key!r} is {number}; legal: an entity, 0 to {entities - 1}")
    return number


def _position(record: Record) -> tuple[int, int]:
    legal = "[first token, last token + 1]"
    match record.value("pos", legal):
        case [int(first), int(last)]:
            return first, last
        case other:
            raise record.mismatch("pos", other, legal)

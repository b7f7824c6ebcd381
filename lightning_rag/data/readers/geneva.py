"""GENEVA: events and their arguments in sentences of FrameNet (Parekh et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds, check_label
from lightning_rag.data.readers.extraction import (
    check_words,
    extraction_instance,
    spaced,
    without_repeats,
)
from lightning_rag.data.readers.jsonl import Record, json_document, json_lines
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, Fact, Instance, Mention

GenevaKind = Literal["events", "arguments"]

FILES = {
    "train": "train.rebuilt.jsonl.gz",
    "validation": "val.jsonl.gz",
    "test": "test.jsonl.gz",
}
ONTOLOGY = "event_ontology.json"
TASKS: Mapping[str, str] = {"events": "EET_geneva", "arguments": "EEA_geneva"}


class Geneva(Reader):
    """Event triggers of a sentence, and the arguments of a given event, as two tasks.

    Each sentence is a record of the task "EET_geneva" (which events, by which trigger words), and
    each of its events one of "EEA_geneva" (who has which role in it). The schema of the first is
    the event types, that of the second the roles that the ontology gives to the event's type. All
    names become words in lower case: "Created_entity" is "created entity".

    The text is the data set's `sentence`; the annotation counts tokens, which are the same
    characters with other spaces. Where an annotated text is another than that of its tokens, the
    tokens decide (three cases). Sentences repeat over events, so all events of one sentence are in
    one split and exclude each other as demonstrations.

    Args:
        folder: holds the files; absolute or relative to the data root.
        kinds: the tasks: "events", "arguments" or both.
        event_types: the event types, as the data set names them, in the order of the schema; other
            events are left out, and sentences without any of these types stay as sentences with
            nothing to extract. None: all that occur in the files, sorted: 115 types, which are more
            words than the sentences have.
    """

    def __init__(
        self,
        folder: str = "geneva",
        kinds: tuple[GenevaKind, ...] = ("events", "arguments"),
        event_types: tuple[str, ...] | None = None,
    ) -> None:
        if not kinds or len(set(kinds)) < len(kinds) or not set(kinds) <= set(TASKS):
            raise UserError(f"kinds is {list(kinds)}; legal: one or both of {', '.join(TASKS)}")
        if event_types is not None and (
            not event_types or len(set(event_types)) < len(event_types)
        ):
            raise UserError(
                f"event_types is {list(event_types)}; legal: at least one type, each once, or null"
            )
        self.folder = folder
        self.kinds = kinds
        self.event_types = event_types

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the ontology and the three files; the seed changes nothing."""
        ontology = _ontology(locate(root, f"{self.folder}/{ONTOLOGY}"))
        ids = UniqueIds()
        found = {
            split: list(_sentences(locate(root, f"{self.folder}/{file}"), ontology, ids))
            for split, file in FILES.items()
        }
        for name in self.event_types or ():
            check_label("event_types", name, ontology)
        types = self.event_types or sorted(
            {event.type for part in found.values() for s in part for event in s.events}
        )
        words = {name: spaced(name) for name in types}
        check_words("event types", words)
        parts = {
            split: tuple(self._instances(split, sentences, words, ontology))
            for split, sentences in found.items()
        }
        train = without_repeats("geneva", *parts.values())
        return Splits(train, parts["validation"], parts["test"])

    def _instances(
        self,
        split: str,
        sentences: Sequence[_Sentence],
        words: Mapping[str, str],
        ontology: Mapping[str, Mapping[str, str]],
    ) -> Iterator[Instance]:
        """Yield the sentences, then the events one by one, as far as they are asked for."""
        schema = tuple(words.values())
        if "events" in self.kinds:
            for number, sentence in enumerate(sentences):
                facts = tuple(
                    Fact(words[e.type], (e.trigger,)) for e in sentence.events if e.type in words
                )
                extraction = Extraction("events", schema, facts)
                yield extraction_instance(TASKS["events"], split, number, sentence.text, extraction)
        if "arguments" in self.kinds:
            events = ((s, e) for s in sentences for e in s.events if e.type in words)
            for number, (sentence, event) in enumerate(events):
                roles = ontology[event.type]
                extraction = Extraction(
                    "arguments",
                    tuple(roles.values()),
                    tuple(Fact(roles[role], (mention,)) for role, mention in event.arguments),
                    Fact(words[event.type], (event.trigger,)),
                )
                yield extraction_instance(
                    TASKS["arguments"], split, number, sentence.text, extraction
                )


@dataclass(frozen=True)
class _Event:
    type: str
    trigger: Mention
    arguments: tuple[tuple[str, Mention], ...]  # role, mention


@dataclass(frozen=True)
class _Sentence:
    text: str
    events: tuple[_Event, ...]


def align(tokens: Sequence[str], text: str) -> list[tuple[int, int]] | None:
    """Return the characters [start, end) of each token in a text that differs by spaces only.

    None where the text is not the tokens with white space before, after or between them.
    """
    spans = []
    end = 0
    for token in tokens:
        start = end
        while text[start : start + 1].isspace():
            start += 1
        end = start + len(token)
        if not token or text[start:end] != token:
            return None
        spans.append((start, end))
    return None if text[end:].strip() else spans


def _ontology(path: Path) -> dict[str, dict[str, str]]:
    """Return event type -> role -> words of the role, in the order of the file."""
    document = json_document(path)
    if not isinstance(document, dict) or not document:
        raise DataError(f"{path}: legal: a JSON object of event type: description, not empty")
    types = Record(str(path), document)
    found = {
        name: {role: spaced(role) for role in types.nested(name).nested("arguments").fields}
        for name in document
    }
    for name, roles in found.items():
        check_words(f"{path}: roles of {name!r}", roles)
    return found


def _sentences(
    path: Path, ontology: Mapping[str, Mapping[str, str]], ids: UniqueIds
) -> Iterator[_Sentence]:
    for record in json_lines(path):
        ids.add(record.identity("wnd_id"), record.where)
        text = record.string("sentence")
        tokens = record.strings("tokens")
        places = align(tokens, text)
        if places is None:
            raise record.error("'tokens' are not the words of 'sentence'; legal: other spaces only")
        spans = _Places(text, places)
        entities = {
            entity.identity(): spans.mention(entity)
            for entity in record.objects("entity_mentions", empty=True)
        }
        events = record.objects("event_mentions", empty=True)
        yield _Sentence(text, tuple(_event(e, spans, entities, ontology) for e in events))


@dataclass(frozen=True)
class _Places:
    """A sentence and the places of its tokens."""

    text: str
    tokens: list[tuple[int, int]]

    def mention(self, record: Record) -> Mention:
        """Return the mention at the tokens "start" to "end", the end excluded."""
        first, last = record.integer("start"), record.integer("end")
        if not 0 <= first < last <= len(self.tokens):
            raise record.error(
                f"tokens [{first}, {last}) in a sentence of {len(self.tokens)}; legal: 0 <= start "
                f"< end <= {len(self.tokens)}"
            )
        start, end = self.tokens[first][0], self.tokens[last - 1][1]
        return Mention(self.text[start:end], start, end)


def _event(
    record: Record,
    spans: _Places,
    entities: Mapping[str, Mention],
    ontology: Mapping[str, Mapping[str, str]],
) -> _Event:
    kind = check_label(record.where, record.string("event_type"), ontology)
    arguments = []
    for argument in record.objects("arguments", empty=True):
        entity = argument.identity("entity_id")
        if entity not in entities:
            raise argument.error(
                f"entity_id {entity!r} is unknown; legal: an id of 'entity_mentions'"
            )
        role = check_label(argument.where, argument.string("role"), ontology[kind])
        arguments.append((role, entities[entity]))
    return _Event(kind, spans.mention(record.nested("trigger")), tuple(arguments))

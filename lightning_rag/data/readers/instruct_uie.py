"""The folder layout of InstructUIE (Wang et al. 2023, arXiv 2304.08085), which RUIE reads too."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import check_label
from lightning_rag.data.readers.extraction import (
    check_unique,
    extraction_instance,
    without_repeats,
)
from lightning_rag.data.readers.jsonl import Record, json_document, json_records
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, ExtractionKind, Fact, Instance, Mention

log = logging.getLogger(__name__)

KINDS: Mapping[str, ExtractionKind] = {
    "NER": "entities",
    "RE": "relations",
    "EET": "events",
    "EEA": "arguments",
}
"""The folders of the four tasks."""

FILES = {"train": "train.json", "validation": "dev.json", "test": "test.json"}
LABELS = "labels.json"

NOTHING = ("", "NA")
"""Types that say that there is no fact."""

Schema = Mapping[str, tuple[str, ...]]  # label -> roles, of events; without roles elsewhere


class InstructUie(Reader):
    """Data sets in folders `{NER,RE,EET,EEA}/<data set>`, one task "<folder>_<data set>" each.

    A folder holds `train.json`, `dev.json` and `test.json`, each a JSON list of records, and
    `labels.json`: a list of labels, in EET and EEA an object of event type: list of roles. Records
    have a `sentence` and

    - NER: `entities`: [{name, type, pos}],
    - RE: `relations`: [{type, head: {name, type, pos}, tail: {name, type, pos}}],
    - EET: `events`: [{trigger, type, pos}],
    - EEA: `events`: [{trigger, type, pos, arguments: [{name, role, pos}]}], an instance each; an
      event of a type without roles asks nothing and gives none.

    `pos` is the characters [start, end) of the sentence. In the released files it is often empty or
    wrong: a mention whose `pos` does not hold its name keeps the name, its place is unknown, and
    the log says how many there are. Facts of the type or role "" or "NA", or with a blank name, are
    left out: they say that there is none. Labels are words already and stay as they are. Training
    records whose text is in validation or test, of any of the data sets, are left out
    (`without_repeats`).

    Args:
        folder: holds the folders of the tasks; absolute or relative to the data root.
        datasets: which, as "NER/conll2003"; None = all of them, in the order of their names.
        strict: a `pos` that does not hold the name is an error.
    """

    def __init__(
        self,
        folder: str = "IE_INSTRUCTIONS",
        datasets: tuple[str, ...] | None = None,
        strict: bool = False,
    ) -> None:
        if datasets is not None and (not datasets or len(set(datasets)) < len(datasets)):
            raise UserError(
                f"datasets is {list(datasets)}; legal: at least one, each once, or null"
            )
        for name in datasets or ():
            kind, _, rest = name.partition("/")
            if kind not in KINDS or not rest or "/" in rest:
                raise UserError(
                    f"datasets has {name!r}; legal: <task>/<data set>, the task one of "
                    f"{', '.join(KINDS)}"
                )
        self.folder = folder
        self.datasets = datasets
        self.strict = strict

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the three files of every data set; the seed changes nothing."""
        parts: dict[str, list[Instance]] = {split: [] for split in FILES}
        for dataset in self.datasets or self._all(root):
            kind = KINDS[dataset.partition("/")[0]]
            schema = _schema(locate(root, f"{self.folder}/{dataset}/{LABELS}"), kind)
            for split, file in FILES.items():
                path = locate(root, f"{self.folder}/{dataset}/{file}")
                reading = _Reading(kind, schema, self.strict)
                parts[split] += _instances(path, dataset.replace("/", "_"), split, reading)
        train = without_repeats(self.folder, *parts.values())
        return Splits(train, tuple(parts["validation"]), tuple(parts["test"]))

    def _all(self, root: Path | None) -> list[str]:
        """Return the data sets of the folder by name: the order of a directory is the machine's."""
        base = (root or Path()) / Path(self.folder).expanduser()
        found = sorted(base.glob(f"*/*/{LABELS}"))
        names = [f"{path.parts[-3]}/{path.parts[-2]}" for path in found if path.parts[-3] in KINDS]
        if not names:
            raise DataError(
                f"{base}: no data sets; legal: a folder with "
                f"{{{','.join(KINDS)}}}/<data set>/{LABELS}"
            )
        return names


def _instances(path: Path, task: str, split: str, reading: _Reading) -> Iterator[Instance]:
    number = 0
    for record in json_records(path):
        for text, extraction in reading.extractions(record):
            yield extraction_instance(task, split, number, text, extraction)
            number += 1
    if reading.unplaced:
        log.warning(
            "%s: of %d mentions %d have a pos that does not hold their name; it is not used",
            *(path, reading.mentions, reading.unplaced),
        )


def _schema(path: Path, kind: ExtractionKind) -> Schema:
    """Return the labels of a data set; of events with their roles."""
    document = json_document(path)
    if kind in ("events", "arguments"):
        if not isinstance(document, dict) or not document:
            raise DataError(f"{path}: legal: a JSON object of event type: list of roles, not empty")
        record = Record(str(path), document)
        roles = {label: record.strings(label, empty=True) for label in document}
        for label, names in roles.items():
            check_unique(f"{path}: {label}", names)
        return {
            label: tuple(name for name in names if name not in NOTHING)
            for label, names in roles.items()
            if label not in NOTHING
        }
    labels = Record(str(path), {"labels": document}).strings("labels")
    check_unique(str(path), labels)
    schema: Schema = {label: () for label in labels if label not in NOTHING}
    if not schema:
        raise DataError(f"{path}: labels {list(labels)}; legal: at least one that is not {NOTHING}")
    return schema


class _Reading:
    """Reads the records of one file, and counts the mentions whose place is not theirs."""

    def __init__(self, kind: ExtractionKind, schema: Schema, strict: bool) -> None:
        self.kind = kind
        self.schema = schema
        self.strict = strict
        self.mentions = 0
        self.unplaced = 0

    def extractions(self, record: Record) -> Iterator[tuple[str, Extraction]]:
        """Yield the text and what is extracted: once for a record, or for each of its events."""
        text = record.string("sentence")
        if self.kind == "arguments":
            for event in record.objects("events", empty=True):
                extraction = self._arguments(text, event)
                if extraction.schema:
                    yield text, extraction
            return
        read = {"entities": self._entity, "relations": self._relation, "events": self._event}
        found = (read[self.kind](text, item) for item in record.objects(self.kind, empty=True))
        facts = tuple(fact for fact in found if fact is not None)
        yield text, Extraction(self.kind, tuple(self.schema), facts)

    def _entity(self, text: str, item: Record) -> Fact | None:
        return self._fact(item, "type", self.schema, (self._mention(text, item, "name"),))

    def _event(self, text: str, item: Record) -> Fact | None:
        return self._fact(item, "type", self.schema, (self._mention(text, item, "trigger"),))

    def _relation(self, text: str, item: Record) -> Fact | None:
        head, tail = (
            self._mention(text, item.nested(key), "name", "type") for key in ("head", "tail")
        )
        return self._fact(item, "type", self.schema, (head, tail))

    def _arguments(self, text: str, event: Record) -> Extraction:
        trigger = self._event(text, event)
        if trigger is None:
            raise event.error("no event type or trigger; legal: a type of labels.json and a word")
        roles = self.schema[trigger.type]
        found = (
            self._fact(item, "role", roles, (self._mention(text, item, "name"),))
            for item in event.objects("arguments", empty=True)
        )
        facts = tuple(fact for fact in found if fact is not None)
        return Extraction("arguments", roles, facts, trigger)

    def _fact(
        self,
        item: Record,
        key: str,
        labels: Mapping[str, tuple[str, ...]] | tuple[str, ...],
        mentions: tuple[Mention, ...],
    ) -> Fact | None:
        """Return the fact of a record, None where its type or a mention says that there is none."""
        label = _text(item, key)
        if label in NOTHING or any(not mention.text for mention in mentions):
            return None
        return Fact(check_label(item.where, label, labels), mentions)

    def _mention(self, text: str, item: Record, key: str, kind: str = "") -> Mention:
        """Return a mention, with its place where `pos` holds its name."""
        written = _text(item, key)
        name = written.strip()
        mention_type = item.string_or_empty(kind) if kind else ""
        legal = "[start, end) of the sentence, or []"
        pos = item.fields.get("pos") or []
        if not isinstance(pos, list) or any(type(number) is not int for number in pos):
            raise item.mismatch("pos", pos, legal)
        self.mentions += 1
        if len(pos) == 2 and 0 <= pos[0] < pos[1] and name and text[slice(*pos)] == written:
            start = pos[0] + written.index(name)
            return Mention(name, start, start + len(name), mention_type)
        if pos:
            self.unplaced += 1
            if self.strict:
                raise item.error(
                    f"pos {pos} does not hold {written!r} in a sentence of {len(text)} characters; "
                    f"legal: {legal}, with the very name"
                )
        return Mention(name, type=mention_type)


def _text(item: Record, key: str) -> str:
    """Return a field that must be there, and may be empty."""
    item.value(key, "a string")
    return item.string_or_empty(key)

"""FewRel 1.0: relations between Wikidata entities in Wikipedia sentences (Han et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import token_span
from lightning_rag.data.readers.jsonl import Record, json_document
from lightning_rag.data.splits import Splits, hold_out, normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Span


class FewRel(Reader):
    """A released FewRel file, cut into supervised splits by sentence and seed.

    The file maps a property id to instances {"tokens", "h", "t"}; "h" and "t" are [name, Wikidata
    id, mentions], a mention being the list of its token numbers. The head is h, the subject of the
    property, and the tail is t, its object, each at its first mention. Labels are property ids;
    `pid2name.json` ({id: [name, description]}) gives their wording. An instance's id is
    "<property>-<place from 0>".

    FewRel was made for few-shot classification of unseen relations and fixes no supervised split.
    All instances of a sentence are in one split: some sentences express several relations.

    Args:
        folder: holds the files; absolute or relative to the data root.
        file: `val_wiki.json` has 16 relations of 700 instances each.
        validation_fraction: share of all instances that becomes the validation split.
        test_fraction: share of all instances that becomes the test split.
    """

    def __init__(
        self,
        folder: str = "fewrel",
        file: str = "val_wiki.json",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
    ) -> None:
        if min(validation_fraction, test_fraction) <= 0 or validation_fraction + test_fraction >= 1:
            raise UserError(
                f"validation_fraction is {validation_fraction} and test_fraction {test_fraction}; "
                "legal: both more than 0, together less than 1"
            )
        self.folder = folder
        self.file = file
        self.validation_fraction = validation_fraction
        self.test_fraction = test_fraction

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the file and cut it."""
        path = locate(root, f"{self.folder}/{self.file}")
        document = json_document(path)
        if not isinstance(document, dict) or not document:
            raise DataError(f"{path}: legal: a JSON object of property id: list of instances")
        names_path = locate(root, f"{self.folder}/pid2name.json")
        wording = _wording(names_path, tuple(document))
        instances: list[Instance] = []
        for label, items in document.items():
            if not isinstance(items, list) or not items:
                raise DataError(f"{path}: {label}: legal: a list of at least one instance")
            for place, item in enumerate(items):
                where = f"{path}: {label}, instance {place} (from 0)"
                if not isinstance(item, dict):
                    raise DataError(f"{where}: {item!r}; legal: a JSON object")
                instances.append(_instance(Record(where, item), label, place))
        rest, test = hold_out(instances, self.test_fraction, seed)
        train, validation = hold_out(
            rest, self.validation_fraction * len(instances) / len(rest), seed
        )
        return Splits(train, validation, test, labels=tuple(document), wording=wording)


def _wording(path: Path, labels: tuple[str, ...]) -> Mapping[str, str]:
    document = json_document(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: legal: a JSON object of property id: [name, description]")
    names = Record(str(path), document)
    return {label: names.strings(label)[0] for label in labels}


def _instance(record: Record, label: str, place: int) -> Instance:
    tokens = record.strings("tokens")
    text = " ".join(tokens)
    return Instance(
        id=f"{label}-{place}",
        text=text,
        answers=(label,),
        head=_first_mention(record, "h", tokens),
        tail=_first_mention(record, "t", tokens),
        group=normalise(text),
    )


def _first_mention(record: Record, key: str, tokens: tuple[str, ...]) -> Span:
    legal = "[name, Wikidata id, [[number of a token, the next number, …], …]]"
    match record.value(key, legal):
        case [str(), str(), [[*mention], *_]]:
            numbers = [number for number in mention if type(number) is int]
        case other:
            raise record.mismatch(key, other, legal)
    if not numbers or mention != list(range(numbers[0], numbers[0] + len(mention))):
        raise record.error(f"mention of {key!r} is {mention}; legal: consecutive token numbers")
    return token_span(record.where, repr(key), tokens, numbers[0], numbers[-1])

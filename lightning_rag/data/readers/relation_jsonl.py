"""Relation extraction from files of one's own: one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds, check_label, check_span
from lightning_rag.data.readers.jsonl import Record, json_lines
from lightning_rag.data.splits import Splits, hold_out, normalise
from lightning_rag.errors import UserError
from lightning_rag.types import Instance, Span


class RelationJsonl(Reader):
    """UTF-8 files with one sentence a line, its two entities and their relation.

    ```
    {"id": "a1", "text": "Ada Lovelace was born in London.", "label": "born_in",
     "head": {"start": 0, "end": 12, "type": "PERSON"}, "tail": {"start": 25, "end": 31}}
    ```

    (on one line). Fields:

    - `id`: a string or an integer, unique over all files.
    - `text`: the sentence as it is to be read.
    - `head`, `tail`: subject and object of the relation, as characters (Unicode code points) of
      `text`, `start` from 0, `end` excluded; `type` is optional.
    - `label`: the relation.
    - `group`: optional, the document that the sentence comes from. A cut never goes through a
      group; without this field, sentences equal but for case and white space are one group.

    Other fields are ignored.

    Args:
        train: file of the training split; absolute or relative to the data root.
        validation: file of the validation split; None = cut from `train`, by group and seed.
        test: file of the test split; None = no test split.
        labels: all legal labels, in order; None = those that occur in the files, sorted.
        validation_fraction: share of `train` to cut where `validation` is None.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        labels: tuple[str, ...] | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        if labels is not None and (len(set(labels)) < len(labels) or not labels):
            raise UserError(f"labels is {list(labels)}; legal: at least one label, each once")
        self.train = train
        self.validation = validation
        self.test = test
        self.labels = labels
        self.validation_fraction = validation_fraction

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the files and cut the validation split where none is given."""
        ids = UniqueIds()
        train, validation, test = (
            tuple(self._instances(locate(root, path), ids)) if path is not None else ()
            for path in (self.train, self.validation, self.test)
        )
        found = {answer for part in (train, validation, test) for i in part for answer in i.answers}
        if self.validation is None:
            train, validation = hold_out(train, self.validation_fraction, seed)
        labels = tuple(sorted(found)) if self.labels is None else tuple(self.labels)
        return Splits(train, validation, test, labels=labels)

    def _instances(self, path: Path, ids: UniqueIds) -> Iterator[Instance]:
        for record in json_lines(path):
            identity = record.identity()
            ids.add(identity, record.where)
            text = record.string("text")
            label = record.string("label")
            if self.labels is not None:
                check_label(record.where, label, self.labels)
            yield Instance(
                id=identity,
                text=text,
                answers=(label,),
                head=_span(record, "head", text),
                tail=_span(record, "tail", text),
                group=record.string_or_empty("group") or normalise(text),
            )


def _span(record: Record, key: str, text: str) -> Span:
    entity = record.nested(key)
    span = Span(entity.integer("start"), entity.integer("end"), entity.string_or_empty("type"))
    return check_span(record.where, key, text, span)

"""KnowledgeNet: facts about people and organisations (Mesquita et al. 2019)."""

from __future__ import annotations

import html
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import check_label, check_span
from lightning_rag.data.readers.extraction import extraction_instance, without_repeats
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, Fact, Mention, Span

PROPERTIES: Mapping[str, str] = {
    "CEO": "CEO",
    "CHILD_OF": "child of",
    "DATE_FOUNDED": "date founded",
    "DATE_OF_BIRTH": "date of birth",
    "DATE_OF_DEATH": "date of death",
    "EDUCATED_AT": "educated at",
    "EMPLOYEE_OR_MEMBER_OF": "employee or member of",
    "FOUNDED_BY": "founded by",
    "HEADQUARTERS": "headquarters",
    "NATIONALITY": "nationality",
    "PLACE_OF_BIRTH": "place of birth",
    "PLACE_OF_RESIDENCE": "place of residence",
    "POLITICAL_AFFILIATION": "political affiliation",
    "SPOUSE": "spouse",
    "SUBSIDIARY_OF": "subsidiary of",
}
"""Property -> its words; the subject is written first: child, then parent; company, then CEO."""

TASK = "RE_knowledgenet"
_CELL = re.compile(r"<td[^>]*>(.*?)</td>")
_TAG = re.compile(r"<[^>]*>")
_CELLS = 10  # fold, document, passage, subject and object (start, end each), property, text
_NONE = "-"


class KnowledgeNet(Reader):
    """The human-readable export: an HTML table in a zip file, a row for each fact or its absence.

    A passage, one sentence or a few, is one record of the task "RE_knowledgenet" with all its
    facts. Pronouns count as mentions. Facts with the same words come once.

    A passage was annotated for some properties only, mostly one; what it says of others is
    unknown. A row without offsets says that it has no fact of its property. The schema of a record
    is therefore what it was annotated for.

    Documents are never in two folds. Training passages that are repeated in validation or test are
    left out (`without_repeats`).

    Args:
        folder: holds the file; absolute or relative to the data root.
        file: the zip file.
        train_folds: folds of the training split.
        validation_folds: folds of the validation split.
        test_folds: folds of the test split.
        schema: "annotated", or "all" 15 properties in every record, as RUIE's records list all
            labels of a data set: facts that nobody annotated then count as wrong answers.

    Raises:
        UserError: a fold in two splits, or a split without folds.
    """

    def __init__(
        self,
        folder: str = "knowledgenet",
        file: str = "human_readable-v10-notest.zip",
        train_folds: tuple[int, ...] = (1, 2),
        validation_folds: tuple[int, ...] = (3,),
        test_folds: tuple[int, ...] = (4,),
        schema: Literal["annotated", "all"] = "annotated",
    ) -> None:
        folds = [*train_folds, *validation_folds, *test_folds]
        if len(set(folds)) < len(folds) or not (train_folds and validation_folds and test_folds):
            raise UserError(
                f"train_folds, validation_folds and test_folds are {list(train_folds)}, "
                f"{list(validation_folds)} and {list(test_folds)}; legal: at least one fold each, "
                "none twice"
            )
        if schema not in ("annotated", "all"):
            raise UserError(f"schema is {schema!r}; legal: annotated, all")
        self.folder = folder
        self.file = file
        self.folds = {"train": train_folds, "validation": validation_folds, "test": test_folds}
        self.schema = schema

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the table; the seed changes nothing."""
        path = locate(root, f"{self.folder}/{self.file}")
        passages = _passages(path)
        found = {passage.fold for passage in passages}
        parts = {}
        for split, folds in self.folds.items():
            missing = sorted(set(folds) - found)
            if missing:
                legal = ", ".join(map(str, sorted(found)))
                raise DataError(f"{path}: no passage of fold {missing[0]}; legal: {legal}")
            texts = _merged([passage for passage in passages if passage.fold in folds])
            parts[split] = tuple(
                extraction_instance(
                    TASK,
                    split,
                    number,
                    passage.text,
                    Extraction("relations", self._asked(passage), passage.distinct()),
                )
                for number, passage in enumerate(texts)
            )
        train = without_repeats("knowledgenet", *parts.values())
        return Splits(train, parts["validation"], parts["test"])

    def _asked(self, passage: _Passage) -> tuple[str, ...]:
        every = self.schema == "all"
        return tuple(w for name, w in PROPERTIES.items() if every or name in passage.annotated)


@dataclass
class _Passage:
    fold: int
    text: str
    annotated: set[str] = field(default_factory=set)  # properties
    facts: list[Fact] = field(default_factory=list)

    def distinct(self) -> tuple[Fact, ...]:
        """Return the first fact of those with the same words."""
        by_words: dict[tuple[str, ...], Fact] = {}
        for fact in self.facts:
            by_words.setdefault((fact.type, *(m.text for m in fact.mentions)), fact)
        return tuple(by_words.values())


def _merged(passages: Sequence[_Passage]) -> list[_Passage]:
    """Return passages of different texts: what several documents quote was annotated for each."""
    by_text: dict[str, _Passage] = {}
    for passage in passages:
        whole = by_text.setdefault(passage.text, _Passage(passage.fold, passage.text))
        whole.annotated |= passage.annotated
        whole.facts += passage.facts
    return list(by_text.values())


def _passages(path: Path) -> list[_Passage]:
    """Read the rows, a passage having several, in the order of fold, document and place."""
    found: dict[tuple[int, int, int], _Passage] = {}
    for number, line in _rows(path):
        where = f"{path}:{number}"
        cells = [cell.strip() for cell in _CELL.findall(line)]
        if len(cells) != _CELLS:
            raise DataError(f"{where}: {len(cells)} cells; legal: a row of {_CELLS} <td>…</td>")
        fold, document, start, _ = (_number(where, cell) for cell in cells[:4])
        label = check_label(where, cells[8], PROPERTIES)
        text = html.unescape(_TAG.sub("", cells[9].removeprefix("<p> ")))
        passage = found.setdefault((fold, document, start), _Passage(fold, text))
        if passage.text != text:
            raise DataError(f"{where}: {text!r}; legal: the text of the passage, {passage.text!r}")
        passage.annotated.add(label)
        if cells[4:8] != [_NONE] * 4:
            places = [_number(where, cell) - start for cell in cells[4:8]]
            mentions = (
                _mention(where, "subject", text, *places[:2]),
                _mention(where, "object", text, *places[2:]),
            )
            passage.facts.append(Fact(PROPERTIES[label], mentions))
    return [found[key] for key in sorted(found)]


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line of the HTML file, row of its table's body)."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [
                name
                for name in archive.namelist()
                if name.endswith(".html") and not name.startswith("__MACOSX")
            ]
            if len(names) != 1:
                raise DataError(f"{path}: {len(names)} HTML files; legal: one")
            with archive.open(names[0]) as raw:
                lines = list(io.TextIOWrapper(raw, encoding="utf-8"))
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a zip file of UTF-8 text: {error}") from error
    rows = [(n, line) for n, line in enumerate(lines, start=1) if line.startswith("<tr><td")]
    if not rows:
        raise DataError(f"{path}: no rows; legal: lines of <tr><td>…</td></tr>")
    yield from rows


def _number(where: str, cell: str) -> int:
    if not cell.isascii() or not cell.isdigit():
        raise DataError(f"{where}: {cell!r} is no number; legal: digits, or '-' four times")
    return int(cell)


def _mention(where: str, name: str, text: str, start: int, end: int) -> Mention:
    span = check_span(where, name, text, Span(start, end))
    return Mention(text[start:end], span.start, span.end)

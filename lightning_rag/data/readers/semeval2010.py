"""SemEval-2010 Task 8: relations between pairs of nominals (Hendrickx et al. 2010)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds, check_label, check_span
from lightning_rag.data.readers.jsonl import text_lines
from lightning_rag.data.splits import Splits, hold_out, normalise
from lightning_rag.errors import DataError
from lightning_rag.types import Instance, Span

RELATIONS = (
    "Cause-Effect",
    "Component-Whole",
    "Content-Container",
    "Entity-Destination",
    "Entity-Origin",
    "Instrument-Agency",
    "Member-Collection",
    "Message-Topic",
    "Product-Producer",
)
LABELS = (*(f"{name}({order})" for name in RELATIONS for order in ("e1,e2", "e2,e1")), "Other")

# The official test key has undirected labels, so the gold comes from the full test file.
TRAIN_FILE = "SemEval2010_task8_training/TRAIN_FILE.TXT"
TEST_FILE = "SemEval2010_task8_testing_keys/TEST_FILE_FULL.TXT"

_SENTENCE = re.compile(r'(\d+)\t"(.*)"\s*')
_MARKED = re.compile(r"(.*)<e1>(.*)</e1>(.*)<e2>(.*)</e2>(.*)")


class SemEval2010Task8(Reader):
    """The official text files: 8,000 training and 2,717 test sentences with one of 19 labels.

    The head is e1 and the tail e2; e1 always comes first, so the direction lies in the label alone.
    Annotators' comments can give the answer away and are never read. There is no official split for
    validation: it is cut from the training file by plain sentence, because sentences are repeated
    with other entity pairs. (16 sentences are in both official files; the official split is kept.)

    Args:
        folder: the unpacked release, absolute or relative to the data root.
        validation_fraction: share of the training file that becomes the validation split.
    """

    def __init__(self, folder: str = "semeval2010_task8", validation_fraction: float = 0.1) -> None:
        self.folder = folder
        self.validation_fraction = validation_fraction

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read both files and cut the validation split by seed."""
        train_path, test_path = (
            locate(root, f"{self.folder}/{file}") for file in (TRAIN_FILE, TEST_FILE)
        )
        ids = UniqueIds()
        official = tuple(_instances(train_path, ids))
        test = tuple(_instances(test_path, ids))
        train, validation = hold_out(official, self.validation_fraction, seed)
        return Splits(train=train, validation=validation, test=test, labels=LABELS)


def _instances(path: Path, ids: UniqueIds) -> Iterator[Instance]:
    """Yield the records: a sentence, a label and a comment, a line each, and a blank line."""
    legal = "legal: a sentence, a label, a line that begins with 'Comment', a blank line"
    record: list[str] = []
    last = found = 0
    for last, line in text_lines(path):
        if line.strip():
            record.append(line)
        elif record:
            raise DataError.at(path, last, f"the record ends after {len(record)} line(s); {legal}")
        if len(record) == 3:
            if not record[2].startswith("Comment"):
                raise DataError.at(path, last, f"{record[2]!r} is no comment; {legal}")
            yield _instance(path, last - 2, record[0], record[1].strip(), ids)
            found += 1
            record = []
    if record:
        raise DataError.at(path, last, f"the file ends after {len(record)} line(s); {legal}")
    if not found:
        raise DataError(f"{path}: no records; {legal}")


def _instance(path: Path, number: int, line: str, label: str, ids: UniqueIds) -> Instance:
    where = f"{path}:{number}"
    sentence = _SENTENCE.fullmatch(line)
    if sentence is None:
        raise DataError.at(path, number, f'{line!r}; legal: a number, a tab and a "sentence"')
    marked = _MARKED.fullmatch(sentence[2])
    tags = ("<e1>", "</e1>", "<e2>", "</e2>")
    if marked is None or any(sentence[2].count(tag) != 1 for tag in tags):
        raise DataError.at(
            path,
            number,
            f"{sentence[2]!r}; legal: <e1>…</e1> … <e2>…</e2>, once each, in this order",
        )
    before, head, between, tail, after = marked.groups()
    # Some markers are glued to a neighbouring word: the tags go, no space comes or goes.
    text = f"{before}{head}{between}{tail}{after}"
    start = len(before) + len(head) + len(between)
    ids.add(sentence[1], where)
    return Instance(
        id=sentence[1],
        text=text,
        answers=(check_label(f"{path}:{number + 1}", label, LABELS),),
        head=check_span(where, "e1", text, Span(len(before), len(before) + len(head))),
        tail=check_span(where, "e2", text, Span(start, start + len(tail))),
        group=normalise(text),
    )

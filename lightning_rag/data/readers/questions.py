"""What the readers of question answering data share: files to splits, gold passages that count."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_rag.data.readers.base import locate
from lightning_rag.data.readers.checks import UniqueIds
from lightning_rag.data.readers.corpus import PassagePool
from lightning_rag.data.readers.jsonl import Record
from lightning_rag.data.splits import Splits, hold_out
from lightning_rag.errors import UserError
from lightning_rag.types import Instance

log = logging.getLogger(__name__)

Part = tuple[Instance, ...]


@dataclass(frozen=True)
class QuestionFiles:
    """Which file is which split, and what is cut from the training file instead.

    Args:
        train: file of the training questions; absolute or relative to the data root.
        validation: file of the validation questions; None = cut from `train`.
        test: file of the test questions; None = cut from `train`.
        validation_fraction: share of `train` that becomes the validation split; 0 = none.
        test_fraction: share of `train` that becomes the test split; 0 = none.

    Raises:
        UserError: if a share is not legal.
    """

    train: str
    validation: str | None
    test: str | None
    validation_fraction: float
    test_fraction: float

    def __post_init__(self) -> None:
        cut = self.validation_fraction if self.validation is None else 0.0
        check_fractions(cut, self.test_fraction if self.test is None else 0.0)

    def read(
        self, root: Path | None, seed: int, instances: Callable[[Path], Iterable[Instance]]
    ) -> tuple[Part, Part, Part]:
        """Return train, validation and test.

        Args:
            root: folder of the data sets.
            seed: what the cuts are drawn from, whole groups at a time.
            instances: reads a file.
        """
        train, validation, test = (
            tuple(instances(locate(root, path))) if path is not None else ()
            for path in (self.train, self.validation, self.test)
        )
        whole = len(train)
        if self.test is None and self.test_fraction > 0:
            train, test = hold_out(train, self.test_fraction, seed)
        if self.validation is None and self.validation_fraction > 0:
            share = self.validation_fraction * whole / len(train)
            train, validation = hold_out(train, share, seed)
        return train, validation, test


def read_with_corpus(
    files: QuestionFiles,
    corpus: str | None,
    root: Path | None,
    seed: int,
    instances: Callable[[Record, PassagePool, bool], Instance],
    records: Callable[[Path], Iterable[Record]],
) -> Splits:
    """Read questions that bring their own paragraphs, and log how many have gold passages.

    Args:
        files: the question files.
        corpus: file of the passages; None = the distinct paragraphs of all questions.
        root: folder of the data sets.
        seed: what the cuts are drawn from.
        instances: makes a question of a record, given the passages and whether the paragraphs of
            the record are to be added to them.
        records: reads a file.
    """
    pool = PassagePool() if corpus is None else PassagePool.read(locate(root, corpus))
    ids = UniqueIds()

    def questions(path: Path) -> list[Instance]:
        found = []
        for record in records(path):
            found.append(instances(record, pool, corpus is None))
            ids.add(found[-1].id, record.where)
        report_gold(str(path), found)
        return found

    splits = files.read(root, seed, questions)
    return Splits(*splits, passages=tuple(pool.passages))


def check_fractions(validation: float, test: float) -> None:
    """Check the shares that are cut from a training file.

    Raises:
        UserError: if one is below 0, or nothing is left to train on.
    """
    if min(validation, test) < 0 or validation + test >= 1:
        raise UserError(
            f"validation_fraction is {validation} and test_fraction {test}; legal: neither below "
            "0, together less than 1"
        )


def report_gold(name: str, instances: Sequence[Instance]) -> None:
    """Log for how many questions the gold passages are known.

    For the others a passage that contains an answer counts as relevant.
    """
    known = sum(bool(instance.relevant) for instance in instances)
    log.info(
        "%s: the gold passages of %d of %d questions are known%s",
        name,
        known,
        len(instances),
        "" if known == len(instances) else "; for the others, passages that contain an answer",
    )


def distinct_answers(record: Record, answers: Iterable[str]) -> tuple[str, ...]:
    """Return the answers without repetitions, in their order.

    Raises:
        DataError: if there is none, or a blank one, which would be in every passage.
    """
    found = tuple(dict.fromkeys(answers))
    if not found or not all(answer.strip() for answer in found):
        raise record.error(
            f"the answers are {list(found)}; legal: at least one answer, none of them blank"
        )
    return found

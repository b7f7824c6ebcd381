"""The subset of 2WikiMultihopQA (Ho et al. 2020) that HippoRAG evaluates on, with its corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds
from lightning_rag.data.readers.corpus import PassagePool
from lightning_rag.data.readers.jsonl import Record, json_records
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers, report_gold
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.types import Instance


class TwoWiki(Reader):
    """`questions.json` with evidence triples, and `2wikimultihopqa_corpus.json`.

    The questions name no gold passages. These are the passages that are titled like the subjects of
    the evidence triples, in the order of the triples, which is that of the hops. A question has
    them if every subject is the title of exactly one passage, up to case and white space: 763 of
    the 1,000 in the released files, all yes/no questions among them. The others have none, so
    retrieval metrics count the passages that contain their answer; `known_gold_only` leaves them
    out. How many have gold passages is logged.

    One answer is accepted, without aliases, so exact match is strict. The cut is by question;
    entities repeat across questions.

    The official files (`train.json`, `dev.json`) have other fields: `HotpotQA` reads them.

    Args:
        folder: holds the files; absolute or relative to the data root.
        validation_fraction: share of the questions that becomes the validation split.
        test_fraction: share of the questions that becomes the test split.
        known_gold_only: leave out the questions whose gold passages are not known.
    """

    def __init__(
        self,
        folder: str = "2wikimultihopqa",
        validation_fraction: float = 0.1,
        test_fraction: float = 0.3,
        known_gold_only: bool = False,
    ) -> None:
        self.files = QuestionFiles(
            f"{folder}/questions.json", None, None, validation_fraction, test_fraction
        )
        self.corpus = f"{folder}/2wikimultihopqa_corpus.json"
        self.known_gold_only = known_gold_only

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the corpus and the questions, and cut these by seed."""
        pool = PassagePool.read(locate(root, self.corpus))
        splits = self.files.read(root, seed, lambda path: self._questions(path, pool))
        return Splits(*splits, passages=tuple(pool.passages))

    def _questions(self, path: Path, pool: PassagePool) -> list[Instance]:
        instances = list(_instances(path, pool))
        report_gold(str(path), instances)
        return [i for i in instances if i.relevant or not self.known_gold_only]


def _instances(path: Path, pool: PassagePool) -> Iterator[Instance]:
    ids = UniqueIds()
    for record in json_records(path):
        identity = record.identity()
        ids.add(identity, record.where)
        question = record.string("question")
        gold = [pool.titled(subject) for subject in _subjects(record)]
        known = [name for name in gold if name is not None]
        yield Instance(
            id=identity,
            text=question,
            answers=distinct_answers(record, [record.string("answer")]),
            relevant=tuple(dict.fromkeys(known)) if len(known) == len(gold) else (),
            group=normalise(question),
        )


def _subjects(record: Record) -> list[str]:
    legal = "a list of at least one [subject, relation, object]"
    value = record.value("evidence", legal)
    subjects = []
    for triple in value if isinstance(value, list) else ():
        match triple:
            case [str() as subject, str(), str()]:
                subjects.append(subject)
            case _:
                raise record.mismatch("evidence", value, legal)
    if not subjects:
        raise record.mismatch("evidence", value, legal)
    return subjects

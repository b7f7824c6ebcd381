"""Questions in the formats of DPR (Karpukhin et al. 2020) over its pieces of Wikipedia."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.corpus import check_share, keep_share, table_passages
from lightning_rag.data.readers.jsonl import Record, json_records
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers
from lightning_rag.data.readers.tsv import tab_rows
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.errors import DataError
from lightning_rag.types import Instance


class Dpr(Reader):
    """Question files of DPR (arXiv 2004.04906), such as Natural Questions, and `psgs_w100.tsv`.

    By its name a question file is a JSON list as `biencoder-nq-train.json`, which may be packed
    (.gz) and larger than memory,

    ```
    {"question": "…", "answers": ["…"],
     "positive_ctxs": [{"title": "…", "text": "…", "passage_id": "18768923"}, …], …}
    ```

    or a table (.csv) as `nq-test.qa.csv`: question, tab, answers as a Python list of strings.
    Gold passages are the `positive_ctxs`, in their order, by `passage_id` or `psg_id`; of a table
    they are not known, and retrieval metrics count the passages that contain an answer. The id of a
    question is "<name of the file>-<number from 1>".

    All passages of `psgs_w100.tsv` take an estimated 18 GiB of memory, and more while they are
    indexed.

    Args:
        corpus: table of the passages: id, text, title; packed (.gz) or not; absolute or relative to
            the data root.
        train: file of the training questions.
        validation: file of the validation questions; None = cut from `train`.
        test: file of the test questions; None = cut from `train`.
        validation_fraction: share of `train` to cut for validation; 0 = none.
        test_fraction: share of `train` to cut for test; 0 = none.
        corpus_share: share of the passages to keep, drawn by seed; gold ones are kept in any case.
            Figures from a share are not comparable with those of the whole corpus.
    """

    def __init__(
        self,
        corpus: str,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        validation_fraction: float = 0.02,
        test_fraction: float = 0.0,
        corpus_share: float = 1.0,
    ) -> None:
        self.files = QuestionFiles(train, validation, test, validation_fraction, test_fraction)
        self.corpus = corpus
        self.corpus_share = check_share(corpus_share)

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the questions, cut what is not given, read the passages."""
        splits = self.files.read(root, seed, _questions)
        gold = {name for part in splits for i in part for name in i.relevant}
        path = locate(root, self.corpus)
        passages = tuple(
            keep_share(table_passages(path), self.corpus_share, seed, lambda p: p.id in gold)
        )
        missing = gold - {passage.id for passage in passages}
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(gold)} passages that the questions call positive "
                f"are missing, first {min(missing)!r}; legal: the corpus that they were made with"
            )
        return Splits(*splits, passages=passages)


def _questions(path: Path) -> Iterator[Instance]:
    name = path.name.removesuffix(".gz")
    records = _table(path) if name.endswith(".csv") else json_records(path)
    for number, record in enumerate(records, start=1):
        question = record.string("question")
        yield Instance(
            id=f"{name}-{number}",
            text=question,
            answers=distinct_answers(record, record.strings("answers")),
            relevant=tuple(dict.fromkeys(_positive(record))),
            group=normalise(question),
        )


def _positive(record: Record) -> Iterator[str]:
    if "positive_ctxs" not in record.fields:
        return
    for context in record.objects("positive_ctxs", empty=True):
        yield context.identity("psg_id" if "psg_id" in context.fields else "passage_id")


def _table(path: Path) -> Iterator[Record]:
    for where, (question, answers) in tab_rows(path, ("question", "answers")):
        try:
            value: object = ast.literal_eval(answers)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(
                f"{where}: answers {answers[:80]!r}; legal: a list of strings as Python writes it"
            ) from error
        yield Record(where, {"question": question, "answers": value})

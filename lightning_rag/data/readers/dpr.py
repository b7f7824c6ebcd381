"""Questions in the formats of DPR (Karpukhin et al. 2020) over its pieces of Wikipedia."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lightning_rag.data.cache import hash_texts
from lightning_rag.data.readers.base import Corpus, StreamingReader, locate
from lightning_rag.data.readers.checks import check_gold
from lightning_rag.data.readers.corpus import check_share, keep_share, table_passages
from lightning_rag.data.readers.jsonl import Record, json_records
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers
from lightning_rag.data.readers.tsv import tab_rows
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.errors import DataError
from lightning_rag.types import Instance, Passage


class Dpr(StreamingReader):
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
    indexed; by default so large a file is stored on disk (`data.store`).

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
        splits, corpus = self.read_apart(root, seed)
        passages = tuple(corpus.read())
        check_gold(corpus, {passage.id for passage in passages})
        return replace(splits, passages=passages)

    def corpus_file(self, root: Path | None) -> Path:
        """Return the table of the passages."""
        return locate(root, self.corpus)

    def read_apart(self, root: Path | None, seed: int) -> tuple[Splits, Corpus]:
        """Read the questions and cut what is not given; the passages stay in their table."""
        splits = self.files.read(root, seed, _questions)
        gold = frozenset(name for part in splits for i in part for name in i.relevant)
        path = self.corpus_file(root)

        def passages() -> Iterator[Passage]:
            return keep_share(table_passages(path), self.corpus_share, seed, lambda p: p.id in gold)

        chosen: dict[str, str | int | float | bool] = {"format": "dpr"}
        if self.corpus_share < 1.0:
            chosen |= {"share": self.corpus_share, "seed": seed, "gold": hash_texts(sorted(gold))}
        return Splits(*splits), Corpus(passages, path, chosen, gold, self.corpus_share)


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

"""SQuAD v1.1 files (Rajpurkar et al. 2016): questions about the paragraphs of articles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.checks import UniqueIds
from lightning_rag.data.readers.corpus import PassagePool
from lightning_rag.data.readers.jsonl import Record, json_document
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers
from lightning_rag.data.splits import Splits
from lightning_rag.errors import DataError
from lightning_rag.types import Instance


class Squad(Reader):
    """Any file in the format of SQuAD v1.1, made a retrieval task.

    ```
    {"data": [{"title": "Ada_Lovelace", "paragraphs": [{"context": "…", "qas": [
        {"id": "q1", "question": "…", "answers": [{"text": "London", "answer_start": 24}]}]}]}]}
    ```

    The paragraphs of all files and splits are the passages, with the article's title; underscores
    in titles become spaces. A question's only gold passage is the paragraph that it was asked
    about. Its accepted answers are the annotators' distinct ones, in the order of the file;
    `answer_start` is not used. Questions without an answer (SQuAD 2.0) are refused.

    A cut goes by article: training and test never ask about the same one. Many questions make
    sense beside their paragraph only ("is there a delegate?"), so recall@1 has a ceiling.

    Args:
        train: file of the training questions; absolute or relative to the data root.
        validation: file of the validation questions; None = cut from `train`.
        test: file of the test questions; None = cut from `train`.
        validation_fraction: share of the questions of `train` to cut for validation; 0 = none.
        test_fraction: share of the questions of `train` to cut for test; 0 = none.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
    ) -> None:
        self.files = QuestionFiles(train, validation, test, validation_fraction, test_fraction)

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the files and cut what is not given."""
        pool, ids = PassagePool(), UniqueIds()
        splits = self.files.read(root, seed, lambda path: _questions(path, pool, ids))
        return Splits(*splits, passages=tuple(pool.passages))


def _questions(path: Path, pool: PassagePool, ids: UniqueIds) -> Iterator[Instance]:
    document = json_document(path)
    if not isinstance(document, dict):
        raise DataError(f"{path}: legal: a JSON object with the field 'data'")
    for article in Record(str(path), document).objects("data"):
        title = article.string("title").replace("_", " ")
        for paragraph in article.objects("paragraphs"):
            gold = pool.add(title, paragraph.string("context"))
            for record in paragraph.objects("qas", empty=True):
                identity = record.identity()
                ids.add(identity, record.where)
                answers = record.objects("answers", empty=True)
                yield Instance(
                    id=identity,
                    text=record.string("question").strip(),
                    answers=distinct_answers(record, [a.string_or_empty("text") for a in answers]),
                    relevant=(gold,),
                    group=title,
                )

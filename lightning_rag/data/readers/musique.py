"""MuSiQue (Trivedi et al. 2022): questions of two to four hops, made of simpler ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.corpus import PassagePool
from lightning_rag.data.readers.jsonl import Record, json_lines, json_records
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers, read_with_corpus
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.types import Instance


class Musique(Reader):
    """Files in the released format, a JSON object a line (.jsonl), or a JSON list of such objects.

    ```
    {"id": "2hop__1_2", "question": "…", "answer": "…", "answer_aliases": ["…"], "answerable": true,
     "paragraphs": [{"idx": 0, "title": "…", "paragraph_text": "…", "is_supporting": true}, …],
     "question_decomposition": [{"paragraph_support_idx": 0, …}, …]}
    ```

    `musique_ans_v1.0_train.jsonl` and `musique_ans_v1.0_dev.jsonl` are such files. Those of the
    full version hold unanswerable questions and are refused; those for the test have no answers, so
    tests go on development files.

    Gold passages are the supporting paragraphs, in the order of the hops. Titles are not unique, so
    they are found by title and text. If one is not in the corpus, the question has none, and
    retrieval metrics count the passages that contain an answer. How many have gold passages is
    logged. Accepted answers are the answer and its aliases.

    Args:
        train: file of the training questions; absolute or relative to the data root.
        validation: file of the validation questions; None = cut from `train`.
        test: file of the test questions; None = cut from `train`.
        corpus: file of the passages: a JSON list of {"title", "text"}, or a table as
            `psgs_w100.tsv`, in which gold passages are not known. None = the distinct paragraphs of
            all questions.
        validation_fraction: share of `train` to cut for validation; 0 = none.
        test_fraction: share of `train` to cut for test; 0 = none.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        corpus: str | None = None,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
    ) -> None:
        self.files = QuestionFiles(train, validation, test, validation_fraction, test_fraction)
        self.corpus = corpus

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the files and cut what is not given."""
        return read_with_corpus(self.files, self.corpus, root, seed, _instance, _records)


def _records(path: Path) -> Iterator[Record]:
    lines = path.name.removesuffix(".gz").endswith(".jsonl")
    return json_lines(path) if lines else json_records(path)


def _instance(record: Record, pool: PassagePool, pooled: bool) -> Instance:
    if not record.boolean("answerable"):
        raise record.error(
            "field 'answerable' is false; legal: true, as in the files with _ans_ in the name"
        )
    question = record.string("question")
    aliases = record.strings("answer_aliases", empty=True)
    paragraphs = {
        item.integer("idx"): (item.string("title"), item.string("paragraph_text"))
        for item in record.objects("paragraphs")
    }
    if pooled:
        for title, text in paragraphs.values():
            pool.add(title, text)
    return Instance(
        id=record.identity(),
        text=question,
        answers=distinct_answers(record, [record.string("answer"), *aliases]),
        relevant=_gold(record, paragraphs, pool),
        group=normalise(question),
    )


def _gold(
    record: Record, paragraphs: dict[int, tuple[str, str]], pool: PassagePool
) -> tuple[str, ...]:
    gold = []
    for hop in record.objects("question_decomposition"):
        number = hop.integer("paragraph_support_idx")
        if number not in paragraphs:
            raise hop.error(
                f"'paragraph_support_idx' is {number}; legal: the 'idx' of one of the question's "
                f"paragraphs, {', '.join(map(str, paragraphs))}"
            )
        name = pool.find(*paragraphs[number])
        if name is None:
            return ()
        gold.append(name)
    return tuple(dict.fromkeys(gold))

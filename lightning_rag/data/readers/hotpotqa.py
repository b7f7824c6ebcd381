"""HotpotQA (Yang et al. 2018), and 2WikiMultihopQA (Ho et al. 2020), which has its format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.corpus import PassagePool, paragraph
from lightning_rag.data.readers.jsonl import Record, json_records
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers, read_with_corpus
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.types import Instance


class HotpotQA(Reader):
    """Files in the released format: a JSON list of questions, each with its own paragraphs.

    ```
    {"_id": "5a7a", "question": "…", "answer": "yes", "supporting_facts": [["Ada", 0], ["Bob", 2]],
     "context": [["Ada", ["First sentence.", " Second sentence."]], …]}
    ```

    `hotpot_train_v1.1.json` and `hotpot_dev_distractor_v1.json` are such files, so are `train.json`
    and `dev.json` of 2WikiMultihopQA; a file may be packed (.gz) and larger than memory. Test files
    have no answers, so tests go on development files.

    Gold passages are the distinct titles of `supporting_facts`, in their order: the passage of the
    corpus with the title and text that the question's `context` gives, else the only one with the
    title. If one of them is not found, the question has none, and retrieval metrics count the
    passages that contain an answer. How many have gold passages is logged.

    Args:
        train: file of the training questions; absolute or relative to the data root.
        validation: file of the validation questions; None = cut from `train`.
        test: file of the test questions; None = cut from `train`.
        corpus: file of the passages: a JSON object of title: list of sentences, a JSON list of
            {"title", "text"}, or a table as `psgs_w100.tsv`, in which gold passages are not known.
            None = the distinct paragraphs of all questions.
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
        return read_with_corpus(self.files, self.corpus, root, seed, _instance, json_records)


def _instance(record: Record, pool: PassagePool, pooled: bool) -> Instance:
    question = record.string("question")
    context = dict(_context(record))
    if pooled:
        for title, text in context.items():
            pool.add(title, text)
    return Instance(
        id=record.identity("_id"),
        text=question,
        answers=distinct_answers(record, [record.string("answer")]),
        relevant=_gold(_titles(record), context, pool),
        group=normalise(question),
    )


def _gold(titles: list[str], context: dict[str, str], pool: PassagePool) -> tuple[str, ...]:
    gold = []
    for title in titles:
        name = pool.find(title, context[title]) if title in context else None
        name = name or pool.titled(title)
        if name is None:
            return ()
        gold.append(name)
    return tuple(dict.fromkeys(gold))


def _titles(record: Record) -> list[str]:
    legal = "a list of at least one [title, number of a sentence]"
    value = record.value("supporting_facts", legal)
    titles = []
    for fact in value if isinstance(value, list) else ():
        match fact:
            case [str() as title, int()]:
                titles.append(title)
            case _:
                raise record.mismatch("supporting_facts", value, legal)
    if not titles:
        raise record.mismatch("supporting_facts", value, legal)
    return titles


def _context(record: Record) -> Iterator[tuple[str, str]]:
    """Yield (title, text) of the question's paragraphs; those without a text are left out."""
    legal = "a list of [title, list of sentences]"
    value = record.value("context", legal)
    if not isinstance(value, list):
        raise record.mismatch("context", value, legal)
    for item in value:
        match item:
            case [str() as title, [*sentences]] if all(isinstance(s, str) for s in sentences):
                text = paragraph(sentences)
            case _:
                raise record.mismatch("context", value, legal)
        if title.strip() and text:
            yield title, text

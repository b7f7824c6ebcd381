"""Question answering over passages, from files of one's own or in the format of FlashRAG."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from lightning_rag.data.readers.base import Corpus, StreamingReader, locate
from lightning_rag.data.readers.checks import UniqueIds
from lightning_rag.data.readers.jsonl import Record, json_lines
from lightning_rag.data.splits import Splits, hold_out, normalise
from lightning_rag.types import Instance, Passage


class QuestionJsonl(StreamingReader):
    r"""UTF-8 files with one JSON object a line: passages, and the questions of each split.

    A passage, in our words or in FlashRAG's (Jin et al. 2024), whose corpus has title and text in
    one field, the title in the first line and usually in double quotes:

    ```
    {"id": "p1", "title": "Ada Lovelace", "text": "Ada Lovelace was born in London."}
    {"id": "p1", "contents": "\"Ada Lovelace\"\nAda Lovelace was born in London."}
    ```

    `title` may be missing; `contents` of a single line is a text without a title. A question, again
    in either:

    ```
    {"id": "q1", "question": "Where was Ada born?", "answers": ["London"], "relevant": ["p1"]}
    {"id": "q1", "question": "Where was Ada born?", "golden_answers": ["London"], "metadata": {}}
    ```

    - `id`: a string or an integer; unique over the passages, and over the questions of all files.
    - `answers` or `golden_answers`: every accepted answer, at least one.
    - `relevant`: optional, ids of the passages that are known to hold the answer; without it, a
      passage that contains an answer counts as relevant.
    - `group`: optional, the document that the question was asked about. A cut never goes through a
      group; without this field, questions equal but for case and white space are one group.

    Other fields are ignored.

    Args:
        corpus: file of the passages; absolute or relative to the data root.
        train: file of the training questions.
        validation: file of the validation questions (FlashRAG: `dev.jsonl`); None = cut from
            `train`, by group and seed.
        test: file of the test questions; None = no test split.
        validation_fraction: share of `train` to cut where `validation` is None.
    """

    def __init__(
        self,
        corpus: str,
        train: str,
        validation: str | None = None,
        test: str | None = None,
        validation_fraction: float = 0.1,
    ) -> None:
        self.corpus = corpus
        self.train = train
        self.validation = validation
        self.test = test
        self.validation_fraction = validation_fraction

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read the files and cut the validation split where none is given."""
        passages = tuple(_passages(self.corpus_file(root), UniqueIds()))
        splits = self._splits(root, seed, {passage.id for passage in passages})
        return replace(splits, passages=passages)

    def corpus_file(self, root: Path | None) -> Path:
        """Return the file of the passages."""
        return locate(root, self.corpus)

    def read_apart(self, root: Path | None, seed: int) -> tuple[Splits, Corpus]:
        """Read the questions and cut the validation split; the passages stay in their file."""
        path = self.corpus_file(root)
        splits = self._splits(root, seed, None)
        questions = (*splits.train, *splits.validation, *splits.test)
        gold = frozenset(name for question in questions for name in question.relevant)
        return splits, Corpus(lambda: _passages(path, None), path, {"format": "jsonl"}, gold)

    def _splits(self, root: Path | None, seed: int, known: Collection[str] | None) -> Splits:
        ids = UniqueIds()
        train, validation, test = (
            tuple(_questions(locate(root, path), ids, known)) if path is not None else ()
            for path in (self.train, self.validation, self.test)
        )
        if self.validation is None:
            train, validation = hold_out(train, self.validation_fraction, seed)
        return Splits(train, validation, test)


def _passages(path: Path, ids: UniqueIds | None) -> Iterator[Passage]:
    """Yield the passages; that ids are unique is checked here, or where they are stored."""
    for record in json_lines(path):
        identity = record.identity()
        if ids is not None:
            ids.add(identity, record.where)
        if "contents" in record.fields and "text" not in record.fields:
            title, text = _title_and_text(record.string("contents"))
        else:
            title, text = record.string_or_empty("title"), record.string("text")
        yield Passage(identity, text, title)


def _title_and_text(contents: str) -> tuple[str, str]:
    first, _, rest = contents.strip().partition("\n")
    if not rest:
        return "", first
    title = first.strip()
    if len(title) > 1 and title[0] == title[-1] == '"':
        # FlashRAG's Wikipedia comes from a table, where a quote within quotes is doubled
        title = title[1:-1].replace('""', '"')
    return title, rest.strip()


def _questions(path: Path, ids: UniqueIds, passages: Collection[str] | None) -> Iterator[Instance]:
    for record in json_lines(path):
        identity = record.identity()
        ids.add(identity, record.where)
        question = record.string("question")
        yield Instance(
            id=identity,
            text=question,
            answers=_answers(record),
            relevant=_relevant(record, passages),
            group=record.string_or_empty("group") or normalise(question),
        )


def _answers(record: Record) -> tuple[str, ...]:
    flashrag = "golden_answers" in record.fields and "answers" not in record.fields
    key = "golden_answers" if flashrag else "answers"
    answers = record.strings(key)
    if not all(answer.strip() for answer in answers):  # a blank answer would be in every passage
        raise record.error(f"field {key!r} is {list(answers)}; legal: answers that are not blank")
    return answers


def _relevant(record: Record, passages: Collection[str] | None) -> tuple[str, ...]:
    relevant = record.identities("relevant")
    for identity in relevant:
        if passages is not None and identity not in passages:
            raise record.error(
                f"'relevant' names {identity!r}; legal: ids of passages in the corpus"
            )
    return relevant

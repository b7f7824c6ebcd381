"""Tasks in the format of KILT (Petroni et al. 2021), such as Wizard of Wikipedia."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds
from lightning_rag.data.readers.corpus import (
    PassagePool,
    check_share,
    is_table,
    keep_share,
    table_passages,
)
from lightning_rag.data.readers.jsonl import json_lines
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers, report_gold
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.types import Instance


class Kilt(Reader):
    r"""Files with one JSON object a line, such as `wow-train-kilt.jsonl`, over any corpus.

    ```
    {"id": "…", "input": "first turn\nlast turn", "output": [{"answer": "reply",
     "provenance": [{"wikipedia_id": "12", "title": "Ada Lovelace", …}]}]}
    ```

    `input` is the query as it is: a dialogue has one turn a line, and a cut keeps what begins with
    the same turn together. Accepted answers are those of `output`; test files have none, so tests
    go on development files.

    Provenance names pages of KILT's own Wikipedia, by id and title. Other corpora do not have its
    ids, so gold are all passages with the title of a page of the provenance, in its order. This is
    relevance by page: success@k says whether one of the first k passages comes from the page,
    recall@k is small by nature.

    Args:
        corpus: file of the passages: a table as `psgs_w100.tsv` (id, text, title), a JSON object of
            title: list of sentences, or a JSON list of {"title", "text"}; absolute or relative to
            the data root.
        train: file of the training questions.
        validation: file of the validation questions; None = cut from `train`.
        test: file of the test questions; None = cut from `train`.
        validation_fraction: share of `train` to cut for validation; 0 = none.
        test_fraction: share of `train` to cut for test; 0 = none.
        corpus_share: share of the passages to keep, drawn by seed; those of the gold pages are kept
            in any case. Figures from a share are not comparable with those of the whole corpus.
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
        ids = UniqueIds()
        titles: dict[str, tuple[str, ...]] = {}  # of the gold pages of each question
        splits = self.files.read(root, seed, lambda path: _questions(path, ids, titles))
        pages: dict[str, list[str]] = {title: [] for named in titles.values() for title in named}
        path = locate(root, self.corpus)
        found = table_passages(path) if is_table(path) else PassagePool.read(path).passages
        passages = tuple(
            keep_share(found, self.corpus_share, seed, lambda passage: passage.title in pages)
        )
        for passage in passages:
            if passage.title in pages:
                pages[passage.title].append(passage.id)
        train, validation, test = (
            tuple(_with_gold(instance, titles[instance.id], pages) for instance in part)
            for part in splits
        )
        report_gold(self.files.train, train)
        return Splits(train, validation, test, passages=passages)


def _with_gold(
    instance: Instance, titles: tuple[str, ...], pages: Mapping[str, list[str]]
) -> Instance:
    return replace(instance, relevant=tuple(name for title in titles for name in pages[title]))


def _questions(
    path: Path, ids: UniqueIds, titles: dict[str, tuple[str, ...]]
) -> Iterator[Instance]:
    for record in json_lines(path):
        identity = record.identity()
        ids.add(identity, record.where)
        query = record.string("input")
        outputs = record.objects("output")
        sources = [
            source
            for output in outputs
            if "provenance" in output.fields
            for source in output.objects("provenance", empty=True)
        ]
        named = [source.string_or_empty("title") for source in sources]
        titles[identity] = tuple(dict.fromkeys(title for title in named if title))
        answers = [output.string("answer") for output in outputs if "answer" in output.fields]
        yield Instance(
            id=identity,
            text=query,
            answers=distinct_answers(record, answers),
            group=normalise(query.strip().split("\n", 1)[0]),
        )

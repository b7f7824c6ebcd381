"""Natural Questions over gold passages and the passages of the DRO authors' training sample."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lightning_rag.data.readers.base import Reader, locate
from lightning_rag.data.readers.checks import UniqueIds
from lightning_rag.data.readers.corpus import PassagePool
from lightning_rag.data.readers.jsonl import Record, json_lines, json_records
from lightning_rag.data.readers.questions import check_fractions, distinct_answers
from lightning_rag.data.splits import Splits, hold_out, normalise
from lightning_rag.types import Instance

SAMPLE_FILE = "dro_nq_generator_training.json.gz"
ORACLE_FILE = "nq-open-oracle.jsonl.gz"

_PROMPT = re.compile(
    r".*passages for your reference\.\n(?P<passages>.*)\nQuestion: (?P<question>[^\n]+)\n"
    r"Your answer: ?",
    re.DOTALL,
)
_NEXT = re.compile(r"(?:^|\n)\[\d+\] (?=Title:)")
_PASSAGE = re.compile(r"Title: (?P<title>.+?) Text:  (?P<text>.+)", re.DOTALL)


class NqOpen(Reader):
    """A small open-domain set with real retrieval noise (questions: Kwiatkowski et al. 2019).

    - Training and validation: the sample that the authors of DRO (arXiv 2505.03075) trained their
      generator on, `dro_nq_generator_training.json.gz`. Its prompts hold a question of the training
      part of Natural Questions and 5 passages that ColBERT found, with one answer. Which passage is
      gold is not known; the answer is in none of the five for three questions in ten.
    - Test: `nq-open-oracle.jsonl.gz` of Lost in the Middle (Liu et al. 2024), questions of the
      development part, each with its gold passage. Several questions may share one.
    - Passages: the distinct ones of both.

    Answers are tokenised ("February 20 , 2017"), so exact match needs a normalisation such as
    SQuAD's. Passages of the sample have quotes doubled as in CSV; these are undone.

    Args:
        folder: holds the files; absolute or relative to the data root.
        validation_fraction: share of the training sample that becomes the validation split.
    """

    def __init__(self, folder: str = "nq_open", validation_fraction: float = 0.1) -> None:
        check_fractions(validation_fraction, 0.0)
        self.folder = folder
        self.validation_fraction = validation_fraction

    def read(self, root: Path | None, seed: int) -> Splits:
        """Read both files and cut the validation split by seed."""
        sample, oracle = (
            locate(root, f"{self.folder}/{file}") for file in (SAMPLE_FILE, ORACLE_FILE)
        )
        pool = PassagePool()
        test = tuple(_with_gold(oracle, pool))
        train, validation = hold_out(
            tuple(_from_prompts(sample, pool)), self.validation_fraction, seed
        )
        return Splits(train, validation, test, passages=tuple(pool.passages))


def _with_gold(path: Path, pool: PassagePool) -> Iterator[Instance]:
    for number, record in enumerate(json_lines(path), start=1):
        gold = [
            pool.add(context.string("title"), context.string("text"))
            for context in record.objects("ctxs")
            if context.boolean("isgold")
        ]
        if not gold:
            raise record.error("no passage of 'ctxs' has isgold true; legal: at least one")
        question = record.string("question")
        yield Instance(
            id=f"oracle-{number}",
            text=question,
            answers=distinct_answers(record, record.strings("answers")),
            relevant=tuple(dict.fromkeys(gold)),
            group=normalise(question),
        )


def _from_prompts(path: Path, pool: PassagePool) -> Iterator[Instance]:
    ids = UniqueIds()
    for record in json_records(path):
        identity = record.identity("query_id")
        ids.add(identity, record.where)
        prompt = _PROMPT.fullmatch(record.string("prompt"))
        if prompt is None:
            raise record.error(
                "field 'prompt' is not as documented; legal: '… passages for your reference.', "
                "passages that begin with '[1] Title:', 'Question: …', 'Your answer: ', each from "
                "the beginning of a line"
            )
        for title, text in _passages(record, prompt["passages"]):
            pool.add(title, text)
        question = prompt["question"].strip()
        yield Instance(
            id=f"sample-{identity}",
            text=question,
            answers=distinct_answers(record, [record.string("response")]),
            group=normalise(question),
        )


def _passages(record: Record, blocks: str) -> Iterator[tuple[str, str]]:
    before, *passages = _NEXT.split(blocks)
    legal = "legal: '[k] Title: … Text:  …', one after the other"
    if before or not passages:
        raise record.error(f"passages of the prompt begin with {blocks[:60]!r}; {legal}")
    for number, block in enumerate(passages, start=1):
        found = _PASSAGE.fullmatch(block)
        if found is None:
            raise record.error(f"passage {number} of the prompt is {block[:60]!r}; {legal}")
        title = found["title"]
        if len(title) > 1 and title[0] == title[-1] == '"':
            title = title[1:-1]
        yield title.replace('""', '"'), found["text"].replace('""', '"')

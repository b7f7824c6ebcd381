"""Which file is which split, and what is cut instead."""

from __future__ import annotations

import logging

import pytest

from lightning_rag.data.readers.jsonl import Record
from lightning_rag.data.readers.questions import QuestionFiles, distinct_answers, report_gold
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance


@pytest.fixture
def root(tmp_path):
    for name, size in (("train", 100), ("dev", 7), ("test", 5)):
        (tmp_path / name).write_text("\n".join(f"{name}{i}" for i in range(size)))
    return tmp_path


def instances(path):
    names = path.read_text().splitlines()
    return [Instance(name, "?", group=f"{path.name}{n // 2}") for n, name in enumerate(names)]


def sizes(root, validation, test, *fractions, seed=0):
    parts = QuestionFiles("train", validation, test, *fractions).read(root, seed, instances)
    groups = [{instance.group for instance in part} for part in parts]
    assert len(set.union(*groups)) == sum(map(len, groups))
    return [len(part) for part in parts]


@pytest.mark.parametrize(
    ("validation", "test", "fractions", "expected"),
    [
        ("dev", "test", (0.1, 0.2), [100, 7, 5]),
        (None, "test", (0.1, 0.9), [90, 10, 5]),
        ("dev", None, (0.9, 0.2), [80, 7, 20]),
        (None, None, (0.1, 0.2), [70, 10, 20]),
        (None, None, (0.1, 0.0), [90, 10, 0]),
        (None, None, (0.0, 0.0), [100, 0, 0]),
    ],
)
def test_what_is_not_given_is_cut(root, validation, test, fractions, expected):
    assert sizes(root, validation, test, *fractions) == expected


def test_cuts_are_drawn_by_seed(root):
    files = QuestionFiles("train", None, None, 0.1, 0.2)
    assert files.read(root, 0, instances) == files.read(root, 0, instances)
    assert files.read(root, 0, instances) != files.read(root, 1, instances)


@pytest.mark.parametrize("fractions", [(-0.1, 0.2), (0.1, -0.2), (0.5, 0.5), (1.0, 0.0)])
def test_fractions(fractions):
    with pytest.raises(UserError, match=r"legal: neither below 0, together less than 1"):
        QuestionFiles("train", None, None, *fractions)
    QuestionFiles("train", "dev", "test", *fractions)  # nothing is cut


def test_a_missing_file_is_named(root):
    with pytest.raises(DataError, match=r"gone: no such file"):
        QuestionFiles("train", "gone", None, 0.1, 0.2).read(root, 0, instances)


def test_known_gold_passages_are_reported(caplog):
    caplog.set_level(logging.INFO)
    known, unknown = Instance("1", "?", relevant=("p",)), Instance("2", "?")
    report_gold("file", [known, unknown, known])
    report_gold("file", [known])
    assert [record.message for record in caplog.records] == [
        "file: the gold passages of 2 of 3 questions are known; for the others, passages that "
        "contain an answer",
        "file: the gold passages of 1 of 1 questions are known",
    ]


def test_answers():
    record = Record("f:1", {})
    assert distinct_answers(record, ["b", "a", "b"]) == ("b", "a")
    for answers in ([], ["a", " "]):
        with pytest.raises(DataError, match=r"f:1: the answers are \[.*\]; legal: at least one a"):
            distinct_answers(record, answers)

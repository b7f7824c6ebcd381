"""Questions over passages, in the project's own format and in FlashRAG's."""

from __future__ import annotations

import json

import pytest

from lightning_rag.data.readers.question_jsonl import QuestionJsonl
from lightning_rag.errors import DataError
from lightning_rag.types import Instance, Passage

PASSAGES = [
    {"id": "p1", "title": "Ada", "text": "Ada was born in London."},
    {"id": 2, "text": "No title."},
]


def question(identity, **changes):
    return {"id": identity, "question": f"Who is {identity}?", "answers": ["A", "B"], **changes}


@pytest.fixture
def write(tmp_path):
    def to_file(name, records):
        lines = [json.dumps(r, ensure_ascii=False) if isinstance(r, dict) else r for r in records]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path

    return to_file


def test_own_format(write):
    write("corpus.jsonl", PASSAGES)
    write("train.jsonl", [question(1, relevant=["p1", 2]), question("x", group="Ada")])
    root = write("test.jsonl", [question("t", relevant=[])])
    reader = QuestionJsonl("corpus.jsonl", "train.jsonl", "train.jsonl", "test.jsonl")
    with pytest.raises(DataError, match=r"train\.jsonl:1: id '1' is already taken"):
        reader.read(root, seed=0)
    write("dev.jsonl", [question("v")])
    reader = QuestionJsonl("corpus.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl")
    splits = reader.read(root, seed=0)
    assert splits.passages == (
        Passage("p1", "Ada was born in London.", "Ada"),
        Passage("2", "No title."),
    )
    assert splits.train == (
        Instance("1", "Who is 1?", ("A", "B"), relevant=("p1", "2"), group="who is 1?"),
        Instance("x", "Who is x?", ("A", "B"), group="Ada"),
    )
    assert [i.id for i in splits.validation + splits.test] == ["v", "t"]
    assert splits.labels == ()


@pytest.mark.parametrize(
    ("contents", "title", "text"),
    [
        ('"Aaron"\nAaron is a prophet.', "Aaron", "Aaron is a prophet."),
        ('"""Heroes"" album"\nBy Bowie.', '"Heroes" album', "By Bowie."),
        ("Aaron\nAaron is\na prophet.\n", "Aaron", "Aaron is\na prophet."),
        ('"\nA lone quote.', '"', "A lone quote."),
        ("Only a text.", "", "Only a text."),
        ("Only a text.\n", "", "Only a text."),
    ],
)
def test_flashrag(write, contents, title, text):
    write("wiki.jsonl", [{"id": "0", "contents": contents}])
    records = [
        {"id": f"train_{i}", "question": f"q{i}", "golden_answers": ["a"], "metadata": {"x": []}}
        for i in range(20)
    ]
    root = write("train.jsonl", records)
    splits = QuestionJsonl("wiki.jsonl", "train.jsonl").read(root, seed=0)
    assert splits.passages == (Passage("0", text, title),)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (18, 2, 0)
    assert splits.train[0].answers == ("a",)


def test_repeated_questions_stay_together(write):
    write("corpus.jsonl", PASSAGES)
    records = [question(i, question=f"Who  is {i // 2}?" if i % 2 else f"who is {i // 2}?")
               for i in range(40)]  # fmt: skip
    root = write("train.jsonl", records)
    splits = QuestionJsonl("corpus.jsonl", "train.jsonl", validation_fraction=0.25).read(root, 0)
    assert len(splits.validation) == 10
    assert not {i.group for i in splits.train} & {i.group for i in splits.validation}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{]", r"train\.jsonl:2: '{\]' is no JSON"),
        (
            question(2, answers="A"),
            r"train\.jsonl:2: field 'answers' is a string, 'A'; legal: a li",
        ),
        (
            question(2, answers=[]),
            r"train\.jsonl:2: field 'answers' is a list, \[\]; legal: a list",
        ),
        (
            question(2, answers=["A", " "]),
            r"train\.jsonl:2: field 'answers' is \['A', ' '\]; legal",
        ),
        ({"id": 2, "question": "q"}, r"train\.jsonl:2: missing field 'answers'; legal: a list"),
        (question(2, question=None), r"train\.jsonl:2: field 'question' is null"),
        (question(2, relevant=["p3"]), r"train\.jsonl:2: 'relevant' names 'p3'; legal: ids of"),
        (question(2, relevant="p1"), r"train\.jsonl:2: field 'relevant' is a string"),
        (question(2, relevant=[[]]), r"train\.jsonl:2: in 'relevant': field 'id' is a list"),
        (question(1), r"train\.jsonl:2: id '1' is already taken at .*train\.jsonl:1"),
    ],
)
def test_bad_questions(write, bad, message):
    write("corpus.jsonl", PASSAGES)
    root = write("train.jsonl", [question(1), bad])
    with pytest.raises(DataError, match=message):
        QuestionJsonl("corpus.jsonl", "train.jsonl").read(root, seed=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "p9"}, r"corpus\.jsonl:3: missing field 'text'; legal"),
        (
            {"id": "p9", "contents": " "},
            r"corpus\.jsonl:3: field 'contents' is a string, ' '; legal",
        ),
        ({"id": "p9", "text": 3}, r"corpus\.jsonl:3: field 'text' is an integer, 3; legal"),
        ({"id": "p9", "text": "a", "title": 3}, r"corpus\.jsonl:3: field 'title' is an integer, 3"),
        (
            {"id": "2", "text": "a"},
            r"corpus\.jsonl:3: id '2' is already taken at .*corpus\.jsonl:2",
        ),
        ({"id": None, "text": "a"}, r"corpus\.jsonl:3: field 'id' is null, None; legal: a string"),
    ],
)
def test_bad_passages(write, bad, message):
    root = write("corpus.jsonl", [*PASSAGES, bad])
    with pytest.raises(DataError, match=message):
        QuestionJsonl("corpus.jsonl", "train.jsonl").read(root, seed=0)


def test_missing_and_empty_files(write):
    root = write("corpus.jsonl", PASSAGES)
    with pytest.raises(DataError, match=r"train\.jsonl: no such file; .*LIGHTNING_RAG_DATA"):
        QuestionJsonl("corpus.jsonl", "train.jsonl").read(root, seed=0)
    write("train.jsonl", [])
    with pytest.raises(DataError, match=r"train\.jsonl: no records"):
        QuestionJsonl("corpus.jsonl", "train.jsonl").read(root, seed=0)

"""Invented files in KILT's format: dialogues and their pages."""

from __future__ import annotations

import json
import logging

import pytest

from lightning_rag.data.readers.kilt import Kilt
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance

TABLE = "id\ttext\ttitle\n" + "".join(f"{i}\ttext {i}\tPage {i % 4}\n" for i in range(1, 13))


def dialogue(identity, *titles, **changes):
    pages = [{"wikipedia_id": "7", "title": title, "start_paragraph_id": 1} for title in titles]
    return {
        "id": identity,
        "input": f"Hello {identity}.\nTell me more.",
        "output": [{"answer": "It is old.", "provenance": pages}],
        "meta": {},
    } | changes


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path

    return to_file


def test_gold_are_the_passages_of_the_pages(write, caplog):
    caplog.set_level(logging.INFO)
    write("psgs.tsv", TABLE)
    outputs = [
        {"answer": "yes", "provenance": [{"wikipedia_id": "1", "title": "Page 3"}]},
        {"provenance": [{"wikipedia_id": "2", "title": "Page 1"}, {"wikipedia_id": "3"}]},
        {"answer": "yes"},
        {"answer": "aye"},
    ]
    train = [dialogue(1, "Page 2"), dialogue(2, output=outputs), dialogue(3, "Nowhere")]
    root = write("wow-train.jsonl", train)
    write("wow-dev.jsonl", [dialogue("d", "Page 0")])
    reader = Kilt("psgs.tsv", "wow-train.jsonl", "wow-dev.jsonl", "wow-dev.jsonl")
    with pytest.raises(DataError, match=r"wow-dev\.jsonl:1: id 'd' is already taken"):
        reader.read(root, seed=0)
    splits = Kilt("psgs.tsv", "wow-train.jsonl", "wow-dev.jsonl").read(root, seed=0)
    text = "Hello 1.\nTell me more."
    assert splits.train == (
        Instance("1", text, ("It is old.",), relevant=("2", "6", "10"), group="hello 1."),
        Instance(
            "2",
            "Hello 2.\nTell me more.",
            ("yes", "aye"),
            relevant=("3", "7", "11", "1", "5", "9"),
            group="hello 2.",
        ),
        Instance("3", "Hello 3.\nTell me more.", ("It is old.",), group="hello 3."),
    )
    assert splits.validation[0].relevant == ("4", "8", "12")
    assert len(splits.passages) == 12
    assert "the gold passages of 2 of 3 questions are known" in caplog.text


def test_turns_of_a_dialogue_stay_together(write):
    write("psgs.tsv", TABLE)
    turns = [
        dialogue(f"{n}-{turn}", "Page 1", input="\n".join([f"Dialogue {n}", *["x"] * turn]))
        for n in range(10)
        for turn in range(4)
    ]
    root = write("train.jsonl", turns)
    splits = Kilt("psgs.tsv", "train.jsonl", validation_fraction=0.2, test_fraction=0.2).read(
        root, seed=0
    )
    parts = [
        {i.id.split("-")[0] for i in p} for p in (splits.train, splits.validation, splits.test)
    ]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10


def test_other_corpora_and_a_share(write):
    pages = {f"Page {n}": [f"Text {n}."] for n in range(500)}
    write("corpus.json", json.dumps(pages))
    root = write("train.jsonl", [dialogue(1, "Page 17")])
    reader = Kilt("corpus.json", "train.jsonl", validation_fraction=0.0, corpus_share=0.1)
    splits = reader.read(root, seed=0)
    assert splits.train[0].relevant == ("Page 17#0",)
    assert "Page 17#0" in {p.id for p in splits.passages}
    assert 20 < len(splits.passages) < 90
    with pytest.raises(UserError, match=r"corpus_share is 2"):
        Kilt("corpus.json", "train.jsonl", corpus_share=2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dialogue(1), r"train\.jsonl:2: id '1' is already taken at .*train\.jsonl:1; legal"),
        ({"id": 2, "input": "x"}, r"train\.jsonl:2: missing field 'output'; legal: a list of at l"),
        (dialogue(2, output=[]), r"jsonl:2: field 'output' is a list, \[\]; legal"),
        (
            dialogue(2, output=[{"provenance": []}]),
            r"jsonl:2: the answers are \[\]; legal: at le",
        ),
        (dialogue(2, output=[{"answer": ""}]), r"jsonl:2: 'output' 1: field 'answer' is a string"),
        (dialogue(2, output=[{"answer": "a", "provenance": 3}]), r"'output' 1: field 'provenance'"),
        (dialogue(2, 3), r"'output' 1: 'provenance' 1: field 'title' is an integer, 3; legal"),
        (dialogue(2, input=["a"]), r"jsonl:2: field 'input' is a list, \['a'\]; legal: a string"),
    ],
)
def test_damaged_files(write, bad, message):
    write("psgs.tsv", TABLE)
    root = write("train.jsonl", [dialogue(1), bad])
    with pytest.raises(DataError, match=message):
        Kilt("psgs.tsv", "train.jsonl", validation_fraction=0.0).read(root, seed=0)

"""Invented files in DPR's formats: questions as JSON and as a table, passages as a table."""

from __future__ import annotations

import gzip
import json

import pytest

from lightning_rag.data.readers.dpr import Dpr
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Passage

TABLE = "id\ttext\ttitle\n" + "".join(f'{i}\t"Text ""{i}"""\tTitle {i % 3}\n' for i in range(1, 9))


def question(text, *gold, key="passage_id", **changes):
    contexts = [{"title": "t", "text": "x", "score": 1000, key: name} for name in gold]
    return {
        "dataset": "nq_train_psgs_w100",
        "question": text,
        "answers": ["a", "b", "a"],
        "positive_ctxs": contexts,
        "negative_ctxs": [],
        "hard_negative_ctxs": [{"title": "t", "text": "x", "passage_id": "99"}],
    } | changes


@pytest.fixture
def write(tmp_path):
    def to_file(name, content):
        text = content if isinstance(content, str) else json.dumps(content, indent=4)
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return tmp_path

    return to_file


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_questions_and_passages(write, packed):
    write(f"psgs.tsv{packed}", TABLE)
    write(f"train.json{packed}", [question("q1", "3", "1", "3"), question("q2", 5, key="psg_id")])
    write(f"dev.json{packed}", [question("q3")])
    root = write("nq-test.qa.csv", 'q4\t[\'x\', "y\'s"]\n"q ""5"""\t"[\'""z""\']"\n')
    reader = Dpr(f"psgs.tsv{packed}", f"train.json{packed}", f"dev.json{packed}", "nq-test.qa.csv")
    splits = reader.read(root, seed=0)
    assert splits.passages[2] == Passage("3", 'Text "3"', "Title 0")
    assert len(splits.passages) == 8
    assert splits.train == (
        Instance("train.json-1", "q1", ("a", "b"), relevant=("3", "1"), group="q1"),
        Instance("train.json-2", "q2", ("a", "b"), relevant=("5",), group="q2"),
    )
    assert splits.validation[0].relevant == ()
    assert splits.test == (
        Instance("nq-test.qa.csv-1", "q4", ("x", "y's"), group="q4"),
        Instance("nq-test.qa.csv-2", 'q "5"', ('"z"',), group='q "5"'),
    )


def test_validation_is_cut_and_a_share_of_the_corpus_kept(write):
    write("psgs.tsv", "".join(f"{i}\ttext {i}\tt\n" for i in range(1000)))
    root = write("train.json", [question(f"q{i}", str(i)) for i in range(50)])
    splits = Dpr("psgs.tsv", "train.json", corpus_share=0.2).read(root, seed=0)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [49, 1, 0]
    ids = {p.id for p in splits.passages}
    assert {str(i) for i in range(50)} <= ids
    assert 170 < len(ids) < 310  # 50 and a fifth of 950
    again = Dpr("psgs.tsv", "train.json", corpus_share=0.2).read(root, seed=1)
    assert {p.id for p in again.passages} != ids


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (question("q", "9"), r"psgs\.tsv: 1 of 2 passages that the questions call positive are mi"),
        (question("q", ""), r"record 2: 'positive_ctxs' 1: field 'passage_id' is a string, ''"),
        (question("q", positive_ctxs=[{}]), r"'positive_ctxs' 1: missing field 'passage_id'"),
        (question("q", positive_ctxs=["3"]), r"record 2: field 'positive_ctxs' is a list, \['3'\]"),
        (question("q", answers=[]), r"record 2: field 'answers' is a list, \[\]; legal"),
        (question("q", answers=[" "]), r"record 2: the answers are \[' '\]; legal"),
        (question(" "), r"train\.json: record 2: field 'question' is a string, ' '; legal"),
        ({"question": "q"}, r"record 2: missing field 'answers'"),
    ],
)
def test_damaged_questions(write, bad, message):
    write("psgs.tsv", TABLE)
    root = write("train.json", [question("q1", "1"), bad])
    with pytest.raises(DataError, match=message):
        Dpr("psgs.tsv", "train.json", validation_fraction=0.0).read(root, seed=0)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q", r"t\.csv:2: 1 columns; legal: 2 columns with a tab between two: question, answers"),
        ("q\tLondon", r"t\.csv:2: answers 'London'; legal: a list of strings as Python writes it"),
        ("q\t__import__('os')", r"t\.csv:2: answers \"__import__\('os'\)\"; legal: a list of str"),
        ("q\t'London'", r"t\.csv:2: field 'answers' is a string, 'London'; legal: a list"),
        ("q\t[1]", r"t\.csv:2: field 'answers' is a list, \[1\]; legal: a list of at least one s"),
        ("q\t['']", r"t\.csv:2: the answers are \[''\]; legal"),
    ],
)
def test_damaged_tables_of_questions(write, line, message):
    write("psgs.tsv", TABLE)
    root = write("t.csv", f"q1\t['x']\n{line}\n")
    with pytest.raises(DataError, match=message):
        Dpr("psgs.tsv", "t.csv", validation_fraction=0.0).read(root, seed=0)


def test_damaged_corpus_and_share(write):
    root = write("train.json", [question("q1", "1")])
    write("psgs.tsv", TABLE + "9\tno title\n")
    with pytest.raises(DataError, match=r"psgs\.tsv:10: 2 columns; legal: 3 columns .*id, text, t"):
        Dpr("psgs.tsv", "train.json", validation_fraction=0.0).read(root, seed=0)
    with pytest.raises(UserError, match=r"corpus_share is 0"):
        Dpr("psgs.tsv", "train.json", corpus_share=0.0)

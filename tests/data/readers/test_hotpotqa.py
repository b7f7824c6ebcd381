"""HotpotQA's format: the small real set, with its corpus and without, and damaged files."""

from __future__ import annotations

import json
import logging

import pytest

from lightning_rag.data.readers.hotpotqa import HotpotQA
from lightning_rag.errors import DataError
from lightning_rag.types import Instance, Passage

TRAIN = "hotpotqa_small/hotpotqa_train.json"
CORPUS = "hotpotqa_small/hotpotqa_train_corpus.json"


@pytest.fixture(scope="module")
def splits(data_root):
    return HotpotQA(TRAIN, corpus=CORPUS).read(data_root, seed=0)


def everything(splits):
    return splits.train + splits.validation + splits.test


def test_sizes(splits):
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [70, 10, 20]
    assert len(splits.passages) == 994
    assert all(len(i.relevant) == 2 for i in everything(splits))
    assert sum(i.answers[0] in ("yes", "no") for i in everything(splits)) == 9


def test_passages_and_gold_are_those_of_the_files(splits, data_root):
    corpus = json.loads((data_root / CORPUS).read_text(encoding="utf-8"))
    written = {title: "".join(sentences).strip() for title, sentences in corpus.items()}
    shown = {p.title: p.text for p in splits.passages}
    assert shown.keys() == written.keys()
    # of two sentences cut within a quotation nothing tells that there was no space
    assert [title for title in shown if shown[title] != written[title]] == ["Dream This"]
    assert "".join(shown["Dream This"].split()) == "".join(written["Dream This"].split())
    titles = {p.id: p.title for p in splits.passages}
    raw = json.loads((data_root / TRAIN).read_text(encoding="utf-8"))
    by_id = {i.id: i for i in everything(splits)}
    for record in raw:
        named = list(dict.fromkeys(title for title, _ in record["supporting_facts"]))
        assert [titles[name] for name in by_id[record["_id"]].relevant] == named


def test_the_paragraphs_of_the_questions_are_the_corpus(splits, data_root):
    pooled = HotpotQA(TRAIN).read(data_root, seed=0)
    assert {(p.title, p.text) for p in pooled.passages} == {
        (p.title, p.text) for p in splits.passages
    }
    a, b = ({p.id: p.text for p in s.passages} for s in (pooled, splits))
    for one, other in zip(everything(pooled), everything(splits), strict=True):
        assert [a[name] for name in one.relevant] == [b[name] for name in other.relevant]


def question(identity, facts=(("Ada", 0), ("Bob", 1), ("Ada", 1)), **changes):
    context = [["Bob", ["B1.", "B2."]], ["Ada", ["A1.", " A2."]], ["Empty", []]]
    return {
        "_id": identity,
        "question": f"q{identity}",
        "answer": "yes",
        "supporting_facts": [list(fact) for fact in facts],
        "context": context,
    } | changes


@pytest.fixture
def read(tmp_path):
    def of(*questions, corpus=None, name="corpus.json"):
        (tmp_path / "train.json").write_text(json.dumps(questions))
        if corpus is not None:
            (tmp_path / name).write_text(corpus)
        reader = HotpotQA(
            "train.json",
            corpus=None if corpus is None else name,
            validation_fraction=0.0,
            test_fraction=0.0,
        )
        return reader.read(tmp_path, seed=0)

    return of


def test_pooled(read):
    other = [["Ada", ["Another."]], ["Bob", ["b1.", "b2."]]]
    splits = read(question(1), question(2, context=other))
    assert splits.passages == (
        Passage("Bob#0", "B1. B2.", "Bob"),
        Passage("Ada#0", "A1. A2.", "Ada"),
        Passage("Ada#1", "Another.", "Ada"),
    )
    assert splits.train == (
        Instance("1", "q1", ("yes",), relevant=("Ada#0", "Bob#0"), group="q1"),
        Instance("2", "q2", ("yes",), relevant=("Ada#1", "Bob#0"), group="q2"),
    )


def test_gold_passages_in_a_corpus(read, caplog):
    caplog.set_level(logging.INFO)
    corpus = json.dumps({"Ada": ["Shortened."], "Bob": ["B1.", "B2."]})
    splits = read(question(1), question(2, [("Eve", 0), ("Ada", 0)]), corpus=corpus)
    assert [i.relevant for i in splits.train] == [("Ada#0", "Bob#0"), ()]
    assert len(splits.passages) == 2
    assert "the gold passages of 1 of 2 questions are known" in caplog.text


def test_gold_passages_are_not_known_in_a_table(read):
    splits = read(question(1), corpus="id\ttext\ttitle\n1\tA1.\tAda\n2\tb\tBob\n", name="c.tsv")
    assert splits.passages == (Passage("1", "A1.", "Ada"), Passage("2", "b", "Bob"))
    assert splits.train[0].relevant == ()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (question(1), r"train\.json: record 2: id '1' is already taken at .*record 1; legal"),
        (question(2, ()), r"record 2: field 'supporting_facts' is a list, \[\]; legal: a list of"),
        (question(2, (("Ada",),)), r"field 'supporting_facts' is a list, \[\['Ada'\]\]; legal"),
        (question(2, (("Ada", "0"),)), r"record 2: field 'supporting_facts' is a list"),
        (question(2, context=3), r"record 2: field 'context' is an integer, 3; legal: a list of"),
        (question(2, context=[["Ada", "A1."]]), r"field 'context' is a list, .*; legal: a list of"),
        (question(2, context=[["Ada", ["A1.", 2]]]), r"record 2: field 'context' is a list"),
        (question(2, answer=True), r"record 2: field 'answer' is true or false, True; legal"),
        ({"_id": 2, "question": "q", "context": []}, r"record 2: missing field 'answer'"),
        ({"id": 2}, r"record 2: missing field '"),
    ],
)
def test_damaged_files(read, bad, message):
    with pytest.raises(DataError, match=message):
        read(question(1), bad)

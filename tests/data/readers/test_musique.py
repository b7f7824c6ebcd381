"""MuSiQue's format: the small real set, with its corpus and without, and damaged files."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lightning_rag.data.readers.musique import Musique
from lightning_rag.errors import DataError
from lightning_rag.types import Instance, Passage

TRAIN = "musique_small/musique_train.json"
CORPUS = "musique_small/musique_train_corpus.json"


@pytest.fixture(scope="module")
def splits(data_root):
    return Musique(TRAIN, corpus=CORPUS).read(data_root, seed=0)


def everything(splits):
    return splits.train + splits.validation + splits.test


def test_sizes(splits):
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [70, 10, 20]
    assert len(splits.passages) == len({p.id for p in splits.passages}) == 1890
    assert len({p.title for p in splits.passages}) == 1764
    assert Counter(len(i.relevant) for i in everything(splits)) == {2: 68, 3: 27, 4: 5}
    assert Counter(i.id[:4] for i in everything(splits)) == {"2hop": 68, "3hop": 27, "4hop": 5}
    assert sum(len(i.answers) > 1 for i in everything(splits)) == 28


def test_gold_passages_are_the_supporting_ones_in_the_order_of_the_hops(splits, data_root):
    passages = {p.id: (p.title, p.text) for p in splits.passages}
    by_id = {i.id: i for i in everything(splits)}
    for record in json.loads((data_root / TRAIN).read_text(encoding="utf-8")):
        instance = by_id[record["id"]]
        gold = [passages[name] for name in instance.relevant]
        supporting = [p for p in record["paragraphs"] if p["is_supporting"]]
        assert sorted(gold) == sorted((p["title"], p["paragraph_text"]) for p in supporting)
        hops = [hop["paragraph_support_idx"] for hop in record["question_decomposition"]]
        assert [title for title, _ in gold] == [record["paragraphs"][n]["title"] for n in hops]
        assert instance.answers[0] == record["answer"]
        assert set(instance.answers) == {record["answer"], *record["answer_aliases"]}


def test_the_paragraphs_of_the_questions_are_the_corpus(splits, data_root):
    pooled = Musique(TRAIN).read(data_root, seed=0)
    assert {(p.title, p.text) for p in pooled.passages} == {
        (p.title, p.text) for p in splits.passages
    }
    assert [len(i.relevant) for i in everything(pooled)] == [
        len(i.relevant) for i in everything(splits)
    ]


PARAGRAPHS = [
    {"idx": 4, "title": "Ada", "paragraph_text": "a"},
    {"idx": 7, "title": "Ada", "paragraph_text": "b"},
    {"idx": 9, "title": "Bob", "paragraph_text": "c"},
]


def question(identity, hops=(7, 4, 7), **changes):
    return {
        "id": identity,
        "question": f"q{identity}",
        "answer": "x",
        "answer_aliases": ["y", "x"],
        "answerable": True,
        "paragraphs": PARAGRAPHS,
        "question_decomposition": [{"paragraph_support_idx": hop} for hop in hops],
    } | changes


@pytest.fixture
def read(tmp_path):
    def of(*questions, corpus=None):
        lines = "\n".join(json.dumps(question) for question in questions)
        (tmp_path / "train.jsonl").write_text(lines)
        if corpus is not None:
            (tmp_path / "corpus.json").write_text(json.dumps(corpus))
        reader = Musique(
            "train.jsonl",
            corpus=None if corpus is None else "corpus.json",
            validation_fraction=0.0,
            test_fraction=0.0,
        )
        return reader.read(tmp_path, seed=0)

    return of


def test_one_object_a_line(read):
    splits = read(question(1), question(2, [9], answer_aliases=[]))
    assert splits.passages == (
        Passage("Ada#0", "a", "Ada"),
        Passage("Ada#1", "b", "Ada"),
        Passage("Bob#0", "c", "Bob"),
    )
    assert splits.train == (
        Instance("1", "q1", ("x", "y"), relevant=("Ada#1", "Ada#0"), group="q1"),
        Instance("2", "q2", ("x",), relevant=("Bob#0",), group="q2"),
    )


def test_titles_do_not_make_gold_passages(read):
    corpus = [{"title": "Ada", "text": "a"}, {"title": "Bob", "text": "other"}]
    splits = read(question(1, [4]), question(2, [4, 9]), question(3, [9]), corpus=corpus)
    assert [i.relevant for i in splits.train] == [("Ada#0",), (), ()]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (question(1), r"train\.jsonl:2: id '1' is already taken at .*train\.jsonl:1; legal"),
        (question(2, [5]), r"jsonl:2: 'question_decomposition' 1: 'paragraph_support_idx' is 5; l"),
        (question(2, [None]), r"'question_decomposition' 1: field 'paragraph_support_idx' is null"),
        (question(2, []), r"jsonl:2: field 'question_decomposition' is a list, \[\]; legal"),
        (question(2, answerable=False), r"jsonl:2: field 'answerable' is false; legal: true, as"),
        (question(2, answer_aliases=None), r"jsonl:2: field 'answer_aliases' is null, None; legal"),
        (question(2, answer_aliases=[" "]), r"jsonl:2: the answers are \['x', ' '\]; legal"),
        (question(2, paragraphs=[{"idx": 1}]), r"jsonl:2: 'paragraphs' 1: missing field 'title'"),
        (question(2, paragraphs=[]), r"jsonl:2: field 'paragraphs' is a list, \[\]; legal"),
        ({"id": 2}, r"jsonl:2: missing field 'answerable'"),
    ],
)
def test_damaged_files(read, bad, message):
    with pytest.raises(DataError, match=message):
        read(question(1), bad)

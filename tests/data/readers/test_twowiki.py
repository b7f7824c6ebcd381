"""The subset of 2WikiMultihopQA with evidence triples, and damaged files."""

from __future__ import annotations

import json
import logging
from collections import Counter

import pytest

from lightning_rag.data.readers.twowiki import TwoWiki
from lightning_rag.errors import DataError
from lightning_rag.types import Instance


@pytest.fixture(scope="module")
def splits(data_root):
    return TwoWiki().read(data_root, seed=0)


@pytest.fixture(scope="module")
def raw(data_root):
    path = data_root / "2wikimultihopqa" / "questions.json"
    return json.loads(path.read_text(encoding="utf-8"))


def everything(splits):
    return splits.train + splits.validation + splits.test


def test_sizes(splits):
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [600, 100, 300]
    assert len({i.id for i in everything(splits)}) == len({i.group for i in everything(splits)})
    assert len(splits.passages) == len({p.title for p in splits.passages}) == 6119
    assert sum(i.answers[0] in ("yes", "no") for i in everything(splits)) == 110
    assert Counter(len(i.relevant) for i in everything(splits)) == {2: 528, 4: 235, 0: 237}


def test_gold_passages_are_titled_like_the_subjects_in_their_order(splits, raw):
    """Against a look-up of its own: the subjects case-folded, among the case-folded titles."""
    titles = {p.id: p.title.casefold() for p in splits.passages}
    known = set(titles.values())
    by_id = {i.id: i for i in everything(splits)}
    for record in raw:
        subjects = list(dict.fromkeys(triple[0].casefold() for triple in record["evidence"]))
        gold = [titles[name] for name in by_id[record["id"]].relevant]
        assert gold == (subjects if set(subjects) <= known else [])
    assert sum(bool(i.relevant) for i in everything(splits)) == 763
    assert all(i.relevant for i in everything(splits) if i.answers[0] in ("yes", "no"))


def test_known_gold_only(splits, data_root, caplog):
    caplog.set_level(logging.INFO)
    kept = TwoWiki(known_gold_only=True).read(data_root, seed=0)
    assert {i.id for i in everything(kept)} == {i.id for i in everything(splits) if i.relevant}
    assert kept.passages == splits.passages
    assert "the gold passages of 763 of 1000 questions are known; for the others" in caplog.text


def test_cut_by_seed(splits, data_root):
    assert TwoWiki().read(data_root, seed=0) == splits
    other = TwoWiki(validation_fraction=0.2, test_fraction=0.5).read(data_root, seed=1)
    assert [len(p) for p in (other.train, other.validation, other.test)] == [300, 200, 500]


CORPUS = [{"title": name, "text": name * 2} for name in ("Ada", "Bob", "Spade")]
CORPUS.append({"title": "SPADE", "text": "another"})
CORPUS.append({"title": "Twice", "text": "a"})
CORPUS.append({"title": "Twice", "text": "b"})


def question(identity, *subjects, **changes):
    triples = [[subject, "knows", "Eve"] for subject in subjects]
    record = {"id": identity, "question": f"q{identity}", "answer": "yes", "evidence": triples}
    return record | changes


@pytest.fixture
def read(tmp_path):
    def of(*questions):
        folder = tmp_path / "2wikimultihopqa"
        folder.mkdir()
        (folder / "2wikimultihopqa_corpus.json").write_text(json.dumps(CORPUS))
        (folder / "questions.json").write_text(json.dumps(questions))
        return TwoWiki(validation_fraction=0.0, test_fraction=0.0).read(tmp_path, seed=0)

    return of


def test_small_files(read):
    splits = read(
        question(1, "bob", "Ada", "Bob"),
        question(2, "Ada", "Nobody"),
        question(3, "Ada", "Twice"),
        question(4, "Spade"),
        question(5, "spade"),
    )
    assert splits.train[0] == Instance("1", "q1", ("yes",), relevant=("Bob#0", "Ada#0"), group="q1")
    assert [i.relevant for i in splits.train[1:]] == [(), (), ("Spade#0",), ()]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (question(1, "Ada"), r"questions\.json: record 2: id '1' is already taken at .*record 1"),
        (question(2), r"record 2: field 'evidence' is a list, \[\]; legal: a list of at least o"),
        (question(2, evidence="x"), r"record 2: field 'evidence' is a string, 'x'; legal: a list"),
        (question(2, evidence=[["a", "b"]]), r"field 'evidence' is a list, \[\['a', 'b'\]\]; leg"),
        (question(2, evidence=[["a", "b", 3]]), r"record 2: field 'evidence' is a list, .*; legal"),
        (question(2, "Ada", answer=""), r"record 2: field 'answer' is a string, ''; legal"),
        (question(2, "Ada", question=None), r"record 2: field 'question' is null, None; legal"),
        ({"id": 2, "question": "q"}, r"record 2: missing field 'evidence'"),
        ("x", r"questions\.json: record 2 is 'x'; legal: a JSON object"),
    ],
)
def test_damaged_files(read, bad, message):
    with pytest.raises(DataError, match=message):
        read(question(1, "Ada"), bad)

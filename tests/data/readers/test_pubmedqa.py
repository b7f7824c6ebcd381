"""PubMedQA's labelled part, and damaged files."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lightning_rag.data.readers.pubmedqa import PubMedQA
from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Passage


@pytest.fixture(scope="module")
def splits(data_root):
    return PubMedQA().read(data_root, seed=0)


@pytest.fixture(scope="module")
def raw(data_root):
    return json.loads((data_root / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))


def everything(splits):
    return splits.train + splits.validation + splits.test


def test_sizes(splits, data_root):
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [450, 50, 500]
    decisions = Counter(i.answers for i in everything(splits))
    assert decisions == {("yes",): 552, ("no",): 338, ("maybe",): 110}
    assert Counter(i.answers for i in splits.test) == {("yes",): 276, ("no",): 169, ("maybe",): 55}
    official = data_root / "pubmedqa" / "test_ground_truth.json"
    assert {i.id for i in splits.test} == set(json.loads(official.read_text(encoding="utf-8")))
    assert len(splits.passages) == 1000
    assert all(i.relevant == (i.id,) for i in everything(splits))
    assert splits.labels == ()


def test_sections(data_root, raw):
    splits = PubMedQA(passages="sections").read(data_root, seed=0)
    assert len(splits.passages) == 3358
    texts = {p.id: p.text for p in splits.passages}
    for instance in everything(splits):
        sections = [texts[name] for name in instance.relevant]
        assert sections == raw[instance.id]["CONTEXTS"]


@pytest.mark.parametrize("passages", ["abstracts", "sections"])
def test_neither_conclusion_nor_votes_are_in_what_a_model_reads(data_root, raw, passages):
    splits = PubMedQA(passages=passages).read(data_root, seed=0)
    shown = {normalise(p.text) for p in splits.passages}
    own = {p.id.split("#")[0]: "" for p in splits.passages}
    for passage in splits.passages:
        own[passage.id.split("#")[0]] += f"\n{passage.text}"
    for identity, record in raw.items():
        conclusion = normalise(record["LONG_ANSWER"])
        assert conclusion not in shown
        assert conclusion not in normalise(own[identity])
        assert own[identity].strip() == "\n".join(record["CONTEXTS"]).strip()
        assert not any(p.title for p in splits.passages)
    assert {i.text for i in everything(splits)} == {r["QUESTION"] for r in raw.values()}


def test_only_the_validation_split_goes_by_seed(splits, data_root):
    other = PubMedQA().read(data_root, seed=1)
    assert other.test == splits.test
    assert {i.id for i in other.validation} != {i.id for i in splits.validation}


def record(decision, *sections):
    return {
        "QUESTION": "Does it?",
        "CONTEXTS": list(sections) or ["a", "b"],
        "final_decision": decision,
        "LONG_ANSWER": "It does.",
    }


GOOD = {str(i): record("yes") for i in range(5)}


@pytest.fixture
def read(tmp_path):
    def of(records, official=None):
        folder = tmp_path / "pubmedqa"
        folder.mkdir()
        (folder / "ori_pqal.json").write_text(json.dumps(records))
        official = {"0": "yes"} if official is None else official
        (folder / "test_ground_truth.json").write_text(json.dumps(official))
        return PubMedQA().read(tmp_path, seed=0)

    return of


def test_small_files(read):
    splits = read(GOOD)
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [3, 1, 1]
    assert splits.test == (Instance("0", "Does it?", ("yes",), relevant=("0",), group="0"),)
    assert splits.passages[0] == Passage("0", "a\nb")


@pytest.mark.parametrize(
    ("records", "official", "message"),
    [
        ([], None, r"ori_pqal\.json: legal: a JSON object of PMID: record, not empty"),
        ({"7": 3}, None, r"ori_pqal\.json: field '7' is an integer, 3; legal: an object"),
        ({"7": record("Yes")}, None, r"in '7': unknown label 'Yes'; legal: yes, no, maybe"),
        ({"7": record("no", " ")}, None, r"in '7': field 'CONTEXTS' has a blank section; legal"),
        ({"7": record("no") | {"CONTEXTS": []}}, None, r"in '7': field 'CONTEXTS' is a list, \[\]"),
        ({"7": {"CONTEXTS": ["a"]}}, None, r"in '7': missing field 'final_decision'"),
        (GOOD, [], r"test_ground_truth\.json: legal: a JSON object of PMID: yes, no or maybe"),
        (GOOD, {"0": "si"}, r"test_ground_truth\.json: '0': unknown label 'si'; legal: yes, no"),
        (GOOD, {"9": "yes"}, r"test_ground_truth\.json: '9' is 'yes', in .* it is 'missing'; leg"),
        (GOOD, {"0": "no"}, r"test_ground_truth\.json: '0' is 'no', in .* it is 'yes'; legal"),
    ],
)
def test_damaged_files(read, records, official, message):
    with pytest.raises(DataError, match=message):
        read(records, official)


def test_arguments():
    with pytest.raises(UserError, match=r"passages is 'words'; legal: abstracts, sections"):
        PubMedQA(passages="words")
    with pytest.raises(UserError, match="validation_fraction is -1"):
        PubMedQA(validation_fraction=-1)

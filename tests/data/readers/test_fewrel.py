"""FewRel's released validation file, and damaged ones."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lightning_rag.data.readers.fewrel import FewRel
from lightning_rag.data.splits import ids_hash
from lightning_rag.errors import DataError, UserError


@pytest.fixture(scope="module")
def splits(data_root):
    return FewRel().read(data_root, seed=0)


def everything(splits):
    return splits.train + splits.validation + splits.test


def test_sizes_labels_and_wording(splits):
    assert Counter(i.answers[0] for i in everything(splits)) == dict.fromkeys(splits.labels, 700)
    assert len({i.id for i in everything(splits)}) == 11200
    assert len(splits.labels) == 16
    assert (len(splits.validation), len(splits.test)) == (1120, 2240)
    for part, share in ((splits.train, 490), (splits.validation, 70), (splits.test, 140)):
        assert all(abs(n - share) <= 3 for n in Counter(i.answers[0] for i in part).values())
    assert splits.wording["P177"] == "crosses"
    assert splits.wording["P26"] == "spouse"
    assert set(splits.wording) == set(splits.labels)


def test_no_sentence_is_in_two_splits(splits):
    parts = [{i.text for i in part} for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 10996


def test_spans_are_the_tokens_of_the_first_mention(splits, data_root):
    raw = json.loads((data_root / "fewrel" / "val_wiki.json").read_text(encoding="utf-8"))
    for instance in everything(splits):
        label, place = instance.id.split("-")
        item = raw[label][int(place)]
        for span, key in ((instance.head, "h"), (instance.tail, "t")):
            words = " ".join(item["tokens"][number] for number in item[key][2][0])
            assert instance.text[span.start : span.end] == words
            before = instance.text[: span.start]
            assert before == "".join(token + " " for token in item["tokens"][: item[key][2][0][0]])
    first = next(i for i in everything(splits) if i.id == "P177-0")
    assert first.text[first.head.start : first.head.end] == "Cape Girardeau Bridge"
    assert first.text[first.tail.start : first.tail.end] == "Mississippi River"


def test_cut_by_seed(splits, data_root):
    assert FewRel().read(data_root, seed=0) == splits
    other = FewRel(validation_fraction=0.05, test_fraction=0.5).read(data_root, seed=1)
    assert (len(other.validation), len(other.test)) == (560, 5600)
    assert ids_hash(other.train) != ids_hash(splits.train)


def item(sentence, head=(0,), tail=(2,)):
    mentions = {"h": ["x", "Q1", [list(head)]], "t": ["y", "Q2", [list(tail), [0]]]}
    return {"tokens": sentence.split(), **mentions}


GOOD = [item(f"a{i} b c d") for i in range(10)]


@pytest.fixture
def read(tmp_path):
    def of(document, names=None):
        folder = tmp_path / "fewrel"
        folder.mkdir()
        (folder / "val_wiki.json").write_text(json.dumps(document))
        (folder / "pid2name.json").write_text(json.dumps(names or {"P1": ["one", "about"]}))
        return FewRel().read(tmp_path, seed=0)

    return of


def test_small_file(read):
    splits = read({"P1": GOOD})
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [7, 1, 2]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"val_wiki\.json: legal: a JSON object of property id"),
        ({"P1": []}, r"val_wiki\.json: P1: legal: a list of at least one instance"),
        (
            {"P1": [*GOOD, 3]},
            r"val_wiki\.json: P1, instance 10 \(from 0\): 3; legal: a JSON object",
        ),
        ({"P2": GOOD}, r"pid2name\.json: missing field 'P2'"),
        ({"P1": [{"h": 1}]}, r"P1, instance 0 \(from 0\): missing field 'tokens'"),
        ({"P1": [item("a b c", head=(3,))]}, r"instance 0 .*: 'h' is tokens 3 to 3 .* of 3; legal"),
        ({"P1": [item("a b c", tail=(0, 2))]}, r"mention of 't' is \[0, 2\]; legal: consecutive"),
        ({"P1": [item("a b c", tail=())]}, r"mention of 't' is \[\]; legal: consecutive"),
        ({"P1": [item("a b c", tail=("0",))]}, r"mention of 't' is \['0'\]; legal: consecutive"),
        ({"P1": [item("a b c") | {"h": ["x", "Q"]}]}, r"field 'h' is a list, \['x', 'Q'\]; legal"),
        ({"P1": GOOD[:1]}, r"cannot hold out a part of 1 instances"),
    ],
)
def test_damaged_files(read, document, message):
    with pytest.raises(DataError, match=message):
        read(document)


def test_no_json_and_missing_file(read, tmp_path):
    with pytest.raises(DataError, match=r"val_wiki\.json: no such file; .*LIGHTNING_RAG_DATA"):
        FewRel().read(tmp_path, seed=0)
    read({"P1": GOOD})
    (tmp_path / "fewrel" / "val_wiki.json").write_text('{"P1": [\n}')
    with pytest.raises(DataError, match=r"val_wiki\.json:2: no JSON"):
        FewRel().read(tmp_path, seed=0)


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.2), (0.1, 0.0), (0.5, 0.5), (-0.1, 0.2)])
def test_fractions(validation, test):
    with pytest.raises(UserError, match="legal: both more than 0, together less than 1"):
        FewRel(validation_fraction=validation, test_fraction=test)

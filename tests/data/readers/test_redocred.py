"""Sentences of the released Re-DocRED files, and of damaged ones."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from itertools import pairwise

import pytest

from lightning_rag.data.readers.redocred import RedocredSentences
from lightning_rag.data.splits import normalise
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import InformationExtraction


@pytest.fixture(scope="module")
def splits(data_root):
    return RedocredSentences().read(data_root, seed=0)


@pytest.fixture(scope="module")
def expected(data_root):
    """Text -> facts in words, pair by pair; and how many facts have a sentence of their own."""
    names = json.loads((data_root / "fewrel/pid2name.json").read_text(encoding="utf-8"))
    found = {}
    for split, file in (("train", "dev_revised"), ("test", "test_revised")):
        documents = json.loads((data_root / f"redocred/{file}.json").read_text(encoding="utf-8"))
        facts, inside = defaultdict(set), 0
        for document in documents:
            within = 0
            for place, tokens in enumerate(document["sents"]):
                first = {}
                for number, entity in enumerate(document["vertexSet"]):
                    spots = sorted(m["pos"] for m in entity if m["sent_id"] == place)
                    if spots:
                        first[number] = " ".join(tokens[spots[0][0] : spots[0][1]])
                if len(first) > 1:
                    facts[" ".join(tokens)] |= {
                        (label["r"], first[label["h"]], first[label["t"]])
                        for label in document["labels"]
                        if label["h"] in first and label["t"] in first
                    }
            for label in document["labels"]:
                places = [{m["sent_id"] for m in document["vertexSet"][label[key]]} for key in "ht"]
                within += bool(places[0] & places[1])
            inside += within
        found[split] = facts, inside
    return found, {key: value[0] for key, value in names.items()}


def test_the_facts_of_a_sentence(splits, expected):
    facts, names = expected
    assert [facts[split][1] for split in ("train", "test")] == [7982, 8156]
    own = {
        **names,
        "P569": "date of birth",
        "P1198": "unemployment rate",
        "P577": "publication date",
    }
    for split, part in (("train", splits.train + splits.validation), ("test", splits.test)):
        texts = facts[split][0]
        assert {i.text for i in part} <= set(texts)
        for i in part:
            mine = {(f.type, *(m.text for m in f.mentions)) for f in i.extraction.facts}
            theirs = {(own.get(r), head, tail) for r, head, tail in texts[i.text] if r in own}
            assert theirs <= mine
            assert len(mine) == len(texts[i.text])


def test_sizes_and_schema(splits):
    parts = splits.train, splits.validation, splits.test
    assert [len(part) for part in parts] == [2779, 297, 3013]  # 3 of training are in test too
    (schema,) = {i.extraction.schema for part in parts for i in part}
    assert len(schema) == len(set(schema)) == 96
    counts = Counter(f.type for i in splits.train for f in i.extraction.facts)
    assert schema[0] == "located in the administrative territorial entity"
    # Most frequent first; the three sentences that were left out have been counted.
    assert all(counts[one] + 3 >= counts[two] for one, two in pairwise(schema))
    later = {normalise(i.text) for i in splits.validation + splits.test}
    assert not later & {normalise(i.text) for i in splits.train}
    for part in parts:
        InformationExtraction().check_answers(part)
        for i in part:
            for fact in i.extraction.facts:
                for m in fact.mentions:
                    assert i.text[m.start : m.end] == m.text
                    assert m.type in {"LOC", "PER", "ORG", "TIME", "NUM", "MISC"}


def test_the_most_frequent_relations(splits, data_root):
    few = RedocredSentences(relations=5).read(data_root, seed=0)
    kept = splits.train[0].extraction.schema[:5]
    assert few.train[0].extraction.schema == kept
    for mine, whole in zip(few.test, splits.test, strict=True):
        facts = tuple(f for f in whole.extraction.facts if f.type in kept)
        assert (mine.id, mine.extraction.facts) == (whole.id, facts)


def test_cut_by_document_and_seed(data_root):
    one, two = (RedocredSentences(validation_fraction=0.3).read(data_root, seed=s) for s in (1, 2))
    assert one == RedocredSentences(validation_fraction=0.3).read(data_root, seed=1)
    assert [i.text for i in one.validation] != [i.text for i in two.validation]
    assert one.test == two.test or one.test[0].extraction.schema != two.test[0].extraction.schema


def mention(place, first, last):
    return {"sent_id": place, "pos": [first, last], "type": "PER", "name": "x"}


def document(**changes):
    made = {
        "title": "t",
        "sents": [["Ann", "and", "Bob", "saw", "Ann"], ["He", "slept"], ["Bob", "!", "Lima"]],
        "vertexSet": [
            [mention(0, 4, 5), mention(0, 0, 1)],
            [mention(0, 2, 3), mention(2, 0, 1)],
            [mention(2, 2, 3)],
        ],
        "labels": [
            {"r": "P26", "h": 0, "t": 1, "evidence": []},
            {"r": "P26", "h": 0, "t": 2},
            {"r": "P569", "h": 1, "t": 2},
        ],
    }
    return {**made, **changes}


def other(number):
    return document(sents=[[f"d{number}", *s[1:]] for s in document()["sents"]])


@pytest.fixture
def read(tmp_path):
    def of(documents, names=None, **arguments):
        for folder in ("redocred", "fewrel"):
            (tmp_path / folder).mkdir(exist_ok=True)
        names = names or {"P26": ["spouse", "about"]}
        (tmp_path / "fewrel/pid2name.json").write_text(json.dumps(names))
        for name, content in (("dev", documents), ("test", [other(98), other(99)])):
            (tmp_path / f"redocred/{name}_revised.json").write_text(json.dumps(content))
        return RedocredSentences(validation_fraction=0.5, **arguments).read(tmp_path, seed=0)

    return of


@pytest.mark.parametrize("names", [{"P26": "spouse"}, {"P26": ["spouse"]}])
def test_small_file(read, names):
    splits = read([document(), other(1)], names)
    mine = next(i for i in splits.train + splits.validation if i.text.startswith("Ann"))
    assert mine.text == "Ann and Bob saw Ann"
    assert mine.answers == ("spouse: Ann, Bob",)
    assert mine.extraction.facts[0].mentions[0].start == 0
    assert mine.extraction.schema == ("date of birth", "spouse")
    assert [i.text for i in splits.test] == [
        "d98 and Bob saw Ann",
        "d98 ! Lima",
        "d99 and Bob saw Ann",
        "d99 ! Lima",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sents": 3}, r"dev_revised\.json: document 1 \(from 0\): field 'sents' is an integer, 3"),
        ({"sents": [["a"], [3]]}, r"document 1 \(from 0\): sentence 1 \(from 0\): field 'sents'"),
        (
            {"vertexSet": {}},
            r"field 'vertexSet' is an object, .*legal: a list of lists of mentions",
        ),
        ({"vertexSet": [3]}, r"entity 0 \(from 0\): field 'vertexSet' is an integer"),
        ({"vertexSet": [[mention(3, 0, 1)]]}, r"entity 0 .*: sent_id is 3; legal: 0 to 2"),
        ({"vertexSet": [[mention(1, 1, 3)]]}, r"a mention is tokens 1 to 2 \(last included\) of 2"),
        ({"vertexSet": [[mention(1, 1, 1)]]}, r"a mention is tokens 1 to 0 \(last included\) of 2"),
        ({"vertexSet": [[{**mention(1, 0, 1), "pos": [0]}]]}, r"field 'pos' is a list, \[0\]; leg"),
        ({"labels": [{"r": "P0", "h": 0, "t": 1}]}, "property 'P0' has no name; legal: one of"),
        ({"labels": [{"r": "P26", "h": 0, "t": 3}]}, "'t' is 3; legal: an entity, 0 to 2"),
        ({"labels": [{"r": "P26", "h": "0", "t": 1}]}, "field 'h' is a string"),
    ],
)
def test_damaged_documents(read, changes, message):
    with pytest.raises(DataError, match=message):
        read([document(), document(**changes)])


def test_damaged_files(read, tmp_path):
    with pytest.raises(DataError, match=r"pid2name\.json: no such file; .*LIGHTNING_RAG_DATA"):
        RedocredSentences().read(tmp_path, seed=0)
    with pytest.raises(DataError, match=r"dev_revised\.json: legal: a JSON list of at least one"):
        read([])
    with pytest.raises(DataError, match=r"document 0 \(from 0\): 3; legal: a JSON object"):
        read([3])
    with pytest.raises(DataError, match="cannot hold out a part of 1 instances"):
        read([document()])
    with pytest.raises(DataError, match=r"pid2name\.json: legal: a JSON object"):
        read([document(), other(1)], names=[3])
    with pytest.raises(UserError, match="'Date of Birth', those of 2 label"):
        read([document(), other(1)], names={"P26": "Date of Birth"})
    with pytest.raises(UserError, match="relations is 0; legal: 1 or more, or null"):
        RedocredSentences(relations=0)

"""SQuADShifts' new Wikipedia articles, small files in the same format, and damaged ones."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from lightning_rag.data.readers.squad import Squad
from lightning_rag.data.splits import ids_hash
from lightning_rag.errors import DataError
from lightning_rag.types import Instance, Passage

FILE = "squadshifts_newwiki/new_wiki_v1.0.json"


@pytest.fixture(scope="module")
def splits(data_root):
    return Squad(FILE).read(data_root, seed=0)


@pytest.fixture(scope="module")
def raw(data_root):
    return json.loads((data_root / FILE).read_text(encoding="utf-8"))["data"]


def everything(splits):
    return splits.train + splits.validation + splits.test


def test_sizes(splits, raw):
    assert len(everything(splits)) == len({i.id for i in everything(splits)}) == 7938
    assert len(splits.passages) == len({p.id for p in splits.passages}) == 1581
    assert len({i.group for i in everything(splits)}) == len(raw) == 48
    votes = [len(qa["answers"]) for a in raw for p in a["paragraphs"] for qa in p["qas"]]
    assert Counter(votes).most_common(1) == [(3, 6715)]
    assert splits.labels == ()


def test_the_cut_goes_by_article(splits, data_root):
    groups = [{i.group for i in part} for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*groups)) == sum(map(len, groups)) == 48
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [
        5479,
        830,
        1629,
    ]
    assert Squad(FILE).read(data_root, seed=0) == splits
    assert ids_hash(Squad(FILE).read(data_root, seed=1).test) != ids_hash(splits.test)


def test_the_gold_passage_holds_every_answer_where_the_file_says(splits, raw):
    questions = {i.id: i for i in everything(splits)}
    passages = {p.id: p for p in splits.passages}
    for article in raw:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                instance = questions[qa["id"]]
                (gold,) = instance.relevant
                assert passages[gold].text == paragraph["context"].strip()
                assert passages[gold].title == article["title"].replace("_", " ") == instance.group
                assert list(instance.answers) == list(
                    dict.fromkeys(a["text"] for a in qa["answers"])
                )
                for answer in qa["answers"]:
                    start = answer["answer_start"]
                    assert paragraph["context"][start:].startswith(answer["text"])


def question(identity, *answers):
    return {
        "id": identity,
        "question": f" Who is {identity}? ",
        "answers": [{"text": text, "answer_start": 0} for text in answers],
    }


def article(title, *paragraphs):
    return {
        "title": title,
        "paragraphs": [{"context": text, "qas": list(qas)} for text, *qas in paragraphs],
    }


@pytest.fixture
def read(tmp_path):
    def of(**files):
        for name, document in files.items():
            (tmp_path / name).write_text(json.dumps(document), encoding="utf-8")
        return Squad(**{name: name for name in files}).read(tmp_path, seed=0)

    return of


def test_files_of_one_s_own(read):
    train = {"data": [article("A_b", ("One.", question("1", "x", "y", "x")), ("Two.",))]}
    validation = {"data": [article("A_b", ("Three.", question("2", "z")))]}
    test = {"data": [article("C", ("one.", question(3, "z"))), article("A_b", ("ONE.",))]}
    splits = read(train=train, validation=validation, test=test)
    assert splits.passages == (
        Passage("A b#0", "One.", "A b"),
        Passage("A b#1", "Two.", "A b"),
        Passage("A b#2", "Three.", "A b"),
        Passage("C#0", "one.", "C"),
    )
    assert splits.train == (
        Instance("1", "Who is 1?", ("x", "y"), relevant=("A b#0",), group="A b"),
    )
    assert splits.validation[0].relevant == ("A b#2",)
    assert splits.test[0].relevant == ("C#0",)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"train: legal: a JSON object with the field 'data'"),
        ({}, r"train: missing field 'data'; legal: a list of at least one object"),
        ({"data": []}, r"train: field 'data' is a list, \[\]; legal: a list of at least one obj"),
        ({"data": [{"title": "a"}]}, r"train: 'data' 1: missing field 'paragraphs'"),
        ({"data": [article("a", ("", question(1, "x")))]}, r"'paragraphs' 1: field 'context' is"),
        ({"data": [article("", ("a", question(1, "x")))]}, r"'data' 1: field 'title' is a string"),
        (
            {"data": [article("a", ("b",), ("c", question(1, "x"), question(2)))]},
            r"train: 'data' 1: 'paragraphs' 2: 'qas' 2: the answers are \[\]; legal: at least one",
        ),
        ({"data": [article("a", ("b", question(1, "x", " ")))]}, r"'qas' 1: the answers are \['x"),
        (
            {"data": [article("a", ("b", question(1, "x"), question(1, "x")))]},
            r"'qas' 2: id '1' is already taken at .*'qas' 1; legal: every id once",
        ),
        ({"data": [article("a", ("b", {"id": 1}))]}, r"'qas' 1: missing field 'answers'"),
        (
            {"data": [article("a", ("b", question(1, "x") | {"question": 3}))]},
            r"'qas' 1: field 'question' is an integer, 3; legal: a string",
        ),
        (
            {"data": [article("a", ("b", question(1, "x") | {"answers": ["x"]}))]},
            r"'qas' 1: field 'answers' is a list, \['x'\]; legal: a list of objects",
        ),
        ({"data": [article("a", ("b", question(1, "x")))]}, r"cannot hold out a part of 1 inst"),
    ],
)
def test_damaged_files(read, document, message):
    with pytest.raises(DataError, match=message):
        read(train=document)

"""Passages of question answering data: what is the same, what has which title, what is kept."""

from __future__ import annotations

import json

import pytest

from lightning_rag.data.readers.corpus import (
    PassagePool,
    check_share,
    is_table,
    keep_share,
    paragraph,
    table_passages,
)
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Passage


def test_same_content_is_one_passage():
    pool = PassagePool()
    assert pool.add("Ada", "Born in London.") == "Ada#0"
    assert pool.add(" ADA", "born  in\nLondon. ") == "Ada#0"
    assert pool.add("Ada", "Died in London.") == "Ada#1"
    assert pool.add("Bob", "Born in London.") == "Bob#0"
    assert pool.add("ada", "Another.") == "ada#0"
    assert pool.passages == [
        Passage("Ada#0", "Born in London.", "Ada"),
        Passage("Ada#1", "Died in London.", "Ada"),
        Passage("Bob#0", "Born in London.", "Bob"),
        Passage("ada#0", "Another.", "ada"),
    ]
    assert pool.find("bob", "Born in LONDON.") == "Bob#0"
    assert pool.find("Bob", "Died in London.") is None


def test_ids_are_unique_and_stand_in_one_line():
    pool = PassagePool()
    for title, text in [("A", "a"), ("A", "b"), ("A#0", "c"), ("A\n b", "d"), ("A b", "e")]:
        pool.add(title, text)
    assert [p.id for p in pool.passages] == ["A#0", "A#1", "A#0#0", "A b#0", "A b#1"]


def test_a_title_counts_if_it_is_the_only_one():
    pool = PassagePool()
    for title, text in [
        ("Queen of Spades", "film"),
        ("Queen of spades", "card"),
        ("Ada", "a"),
        ("Twice", "a"),
        ("Twice", "b"),
    ]:
        pool.add(title, text)
    assert pool.titled("Queen of spades") == "Queen of spades#0"  # as it is written
    assert pool.titled("queen of spades") is None  # two to choose from
    assert pool.titled(" aDA ") == "Ada#0"
    assert pool.titled("Twice") is None
    assert pool.titled("Nobody") is None


def test_corpus_files(tmp_path):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps({"Ada": ["Born.", " Died."], "Bob": ["Lives."]}))
    assert PassagePool.read(path).passages == [
        Passage("Ada#0", "Born. Died.", "Ada"),
        Passage("Bob#0", "Lives.", "Bob"),
    ]
    path.write_text(json.dumps([{"title": "Ada", "text": "x"}, {"title": "Ada", "text": "y"}]))
    assert [p.id for p in PassagePool.read(path).passages] == ["Ada#0", "Ada#1"]
    table = tmp_path / "psgs_w100.tsv"
    table.write_text('id\ttext\ttitle\n7\t"Aaron ( ""Aharon"") is"\tAaron\n8\tb\tAaron\n')
    pool = PassagePool.read(table)
    assert pool.passages == [
        Passage("7", 'Aaron ( "Aharon") is', "Aaron"),
        Passage("8", "b", "Aaron"),
    ]
    assert pool.titled("Aaron") is None  # a page has many pieces


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("x", r"corpus\.json: legal: a JSON object of title: list of sentences, or"),
        ({}, r"corpus\.json: legal: a JSON object"),
        ([], r"corpus\.json: legal: a JSON object"),
        ([3], r"corpus\.json: field 'corpus' is a list, \[3\]; legal: a list of at least one obj"),
        ([{"title": "a"}], r"corpus\.json: 'corpus' 1: missing field 'text'"),
        ([{"title": " ", "text": "a"}], r"corpus\.json: 'corpus' 1: field 'title' is a string"),
        ({"a": "b"}, r"corpus\.json: field 'a' is a string, 'b'; legal: a list of at least one s"),
    ],
)
def test_damaged_corpus_files(tmp_path, document, message):
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        PassagePool.read(path)


@pytest.mark.parametrize("row", ["\ttext\ttitle", "1\t \ttitle"])
def test_table_without_id_or_text(tmp_path, row):
    path = tmp_path / "c.tsv"
    path.write_text(f"0\ta\tb\n{row}\n")
    with pytest.raises(DataError, match=r"c\.tsv:2: id .*, text .*; legal: neither is blank"):
        list(table_passages(path))


def test_table_names(tmp_path):
    names = ("psgs_w100.tsv", "psgs_w100.tsv.gz", "a.json", "tsv", "a.tsv.json")
    assert [is_table(tmp_path / name) for name in names] == [True, True, False, False, False]


def test_a_share_is_drawn_by_seed_and_keeps_gold():
    passages = [Passage(str(i), "x") for i in range(4000)]

    def kept(share, seed):
        found = keep_share(passages, share, seed, lambda p: p.id == "17")
        return {passage.id for passage in found}

    tenth = kept(0.1, 0)
    assert 320 < len(tenth) < 480  # five standard deviations of the binomial are 95
    assert tenth == kept(0.1, 0) != kept(0.1, 1)
    assert tenth < kept(0.2, 0)
    assert all("17" in kept(share, seed) for share in (1e-9, 0.1) for seed in range(3))
    assert len(kept(1.0, 0)) == 4000


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_share_is_checked(share):
    with pytest.raises(UserError, match=r"corpus_share is .*; legal: more than 0 and at most 1"):
        check_share(share)


@pytest.mark.parametrize(
    ("sentences", "text"),
    [
        (["A.", " B.", " C.", '"d"', " E."], 'A. B. C."d" E.'),
        (["A.", "B.", "C."], "A. B. C."),
        ([" A.", "B. "], "A. B."),
        (["A."], "A."),
        ([], ""),
        (["", " "], ""),
    ],
)
def test_paragraphs(sentences, text):
    assert paragraph(sentences) == text

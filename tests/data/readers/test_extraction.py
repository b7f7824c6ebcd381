"""The instance of a record of information extraction, words of labels, repeated sentences."""

from __future__ import annotations

import pytest

from lightning_rag.data.readers.extraction import (
    check_unique,
    check_words,
    extraction_instance,
    spaced,
    without_repeats,
)
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import linearize
from lightning_rag.types import Extraction, Fact, Mention


def record(text, number=0, split="train", facts=()):
    return extraction_instance("NER_x", split, number, text, Extraction("entities", ("a",), facts))


def test_instance():
    fact = Fact("a", (Mention("b", 0, 1),))
    instance = record("b  C", 7, "test", (fact,))
    assert (instance.id, instance.task, instance.group) == ("NER_x/test/7", "NER_x", "b c")
    assert instance.answers == (linearize(instance.extraction),) == ("a: b",)
    assert record("b").answers == ("None",)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Created_entity", "created entity"),
        ("GetReady", "get ready"),
        ("creative-work", "creative work"),
        ("Arguer2", "arguer 2"),
        ("Exchanger_1", "exchanger 1"),
        ("DNA", "dna"),
        ("_x__y_", "x y"),
        ("person", "person"),
    ],
)
def test_spaced(label, words):
    assert spaced(label) == words


def test_training_sentences_of_other_splits_go(caplog):
    train = [record(text, number) for number, text in enumerate(("one", "Two  x", "three", "four"))]
    caplog.set_level("INFO")
    kept = without_repeats("toy", train, [record("two X")], [record("FOUR"), record("five")])
    assert [i.id for i in kept] == ["NER_x/train/0", "NER_x/train/2"]
    assert "toy: 2 of 4 training records left out" in caplog.text
    caplog.clear()
    assert without_repeats("toy", train, [record("five")], []) == tuple(train)
    assert not caplog.records


@pytest.mark.parametrize("words", [{"a": " "}, {"a": "x", "b": "X"}, {"a": "x y", "b": "x  y"}])
def test_words_of_labels(words):
    with pytest.raises(UserError, match=r"here: the words of label 'a' are .*; legal: words that"):
        check_words("here", words)
    check_words("here", {"a": "x", "b": "y"})


def test_labels_once():
    check_unique("here", ["a", "b"])
    with pytest.raises(DataError, match=r"here: label 'a' stands there twice; legal: every label"):
        check_unique("here", ["a", "b", "a"])

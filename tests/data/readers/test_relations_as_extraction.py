"""SemEval-2010 and FewRel as extraction tasks, and small made-up data sets."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pytest

from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.fewrel import FewRel
from lightning_rag.data.readers.relations_as_extraction import RelationsAsExtraction
from lightning_rag.data.readers.semeval2010 import SemEval2010Task8
from lightning_rag.data.readers.synthetic import SyntheticQuestions, SyntheticRelations
from lightning_rag.data.splits import Splits, normalise
from lightning_rag.errors import UserError
from lightning_rag.tasks.information_extraction import InformationExtraction
from lightning_rag.types import Instance, Span


def everything(splits):
    return splits.train + splits.validation + splits.test


def check(splits):
    """What holds for every extraction task: sound records, spans of their text, unique ids."""
    for part in (splits.train, splits.validation, splits.test):
        InformationExtraction().check_answers(part)
    assert len({i.id for i in everything(splits)}) == len(everything(splits))
    for instance in everything(splits):
        for fact in instance.extraction.facts:
            for mention in fact.mentions:
                assert instance.text[mention.start : mention.end] == mention.text
    later = {normalise(i.text) for i in splits.validation + splits.test}
    assert not later & {normalise(i.text) for i in splits.train}


def test_semeval(data_root):
    plain = SemEval2010Task8().read(data_root, 0)
    splits = RelationsAsExtraction(SemEval2010Task8(), "semeval2010", "Other").read(data_root, 0)
    check(splits)
    # 25 repeats in training and validation, 3 in test; 16 sentences are in training and test
    texts = [{i.text for i in part} for part in (plain.train, plain.validation, plain.test)]
    later = {normalise(text) for text in texts[1] | texts[2]}
    left = {text for text in texts[0] if normalise(text) not in later}
    assert [len(p) for p in (splits.train, splits.validation, splits.test)] == [
        len(left),
        len(texts[1]),
        2714,
    ]
    assert len(texts[0]) + len(texts[1]) == 8000 - 25
    assert len(texts[0]) - len(left) == 16
    (schema,) = {i.extraction.schema for i in everything(splits)}
    assert len(schema) == 9
    assert schema[:2] == ("cause effect", "component whole")
    facts = Counter(f.type for i in splits.test for f in i.extraction.facts)
    assert facts["cause effect"] == 134 + 194
    assert facts["message topic"] == 210 + 51
    assert facts.total() == 2717 - 454
    assert splits.train[0].answers == ("component whole: elements, configuration",)  # (e2,e1)
    assert {i.task for i in everything(splits)} == {"RE_semeval2010"}
    assert splits.test[0].id == "RE_semeval2010/test/0"
    assert splits.labels == splits.passages == ()


def test_direction_follows_the_label(data_root):
    plain = SemEval2010Task8().read(data_root, 0)
    splits = RelationsAsExtraction(SemEval2010Task8(), "x", "Other").read(data_root, 0)
    expected = defaultdict(set)
    for i in plain.test:
        if i.answers != ("Other",):
            pair = [(s.start, s.end) for s in (i.head, i.tail)]
            name = i.answers[0].split("(")[0].replace("-", " ").lower()
            expected[i.text].add((name, *(pair[::-1] if "e2,e1" in i.answers[0] else pair)))
    for i in splits.test:
        found = {(f.type, *((m.start, m.end) for m in f.mentions)) for f in i.extraction.facts}
        assert found == expected[i.text]


def test_fewrel(data_root):
    splits = RelationsAsExtraction(FewRel(), "fewrel").read(data_root, 0)
    check(splits)
    assert len(everything(splits)) == 10996
    (schema,) = {i.extraction.schema for i in everything(splits)}
    assert len(schema) == 16
    assert schema[0] == "crosses"
    facts = Counter(f.type for i in everything(splits) for f in i.extraction.facts)
    assert set(facts) == set(schema)
    assert all(699 <= count <= 700 for count in facts.values())
    assert splits.train[0].answers == ("crosses: Cape Girardeau Bridge, Mississippi River",)
    severals = [i for i in everything(splits) if len({f.type for f in i.extraction.facts}) > 1]
    assert len(severals) == 78


class Made(Reader):
    """Three sentences: two pairs of one, another label of a pair, none, a repeat in test."""

    def __init__(self, **changes: object) -> None:
        self.changes = changes

    def read(self, root: Path | None, seed: int) -> Splits:
        def pair(identity, text, label, head=(0, 1), tail=(2, 3)):
            answers = () if label is None else (label,)
            return Instance(identity, text, answers, Span(*head), Span(*tail, "PER"))

        parts = {
            "train": (
                pair("1", "a b c", "R_One"),
                pair("2", "d e f", "none"),
                pair("3", "a b c", "two(e2,e1)"),
                pair("4", "a b c", "R_One", tail=(4, 5)),
                pair("5", "a b c", "R_One"),
                pair("6", "A  b", "R_One", tail=(3, 4)),
            ),
            "validation": (pair("7", "d f g", "none"),),
            "test": (pair("8", "a b", "two(e1,e2)"),),
            "labels": ("R_One", "two(e1,e2)", "two(e2,e1)", "none"),
        }
        return Splits(**{**parts, **self.changes})


def test_a_sentence_is_one_record():
    splits = RelationsAsExtraction(Made(), "made", "none").read(None, 0)
    check(splits)
    assert [(i.id, i.answers) for i in splits.train] == [
        ("RE_made/train/0", ("r one: a, b; two: b, a; r one: a, c",)),
        ("RE_made/train/1", ("None",)),
    ]
    assert splits.test[0].answers == ("two: a, b",)
    assert splits.train[0].extraction.schema == ("r one", "two")
    assert [m.type for m in splits.train[0].extraction.facts[1].mentions] == ["PER", ""]


def test_wording():
    words = {"two": "the second", "R_One": "the first"}
    splits = RelationsAsExtraction(Made(), "made", "none", words).read(None, 0)
    assert splits.test[0].answers == ("the second: a, b",)
    assert splits.test[0].extraction.schema == ("the second", "the first")
    own = Made(wording={"R_One": "number one"})
    assert RelationsAsExtraction(own, "made", "none").read(None, 0).train[0].extraction.schema == (
        "number one",
        "two",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"no_relation": "Other"}, r"no_relation is 'Other'; legal: null, R_One, two\(e1,e2\)"),
        ({"labels": {"two": "b"}, "no_relation": "none"}, "labels has no words for R_One; legal"),
        ({"reader": SyntheticRelations(train=8)}, "read for 'made' has a passage store of its own"),
        ({"reader": SyntheticQuestions(train=8)}, "read for 'made' has a passage store of its own"),
        (
            {"reader": Made(test=(Instance("q", "why?", ("x",)),)), "no_relation": "none"},
            "instance 'q' is not a pair of entities with a label",
        ),
        (
            {"reader": Made(test=(Instance("q", "a b", (), Span(0, 1), Span(2, 3)),))},
            "instance 'q' is not a pair of entities with a label",
        ),
    ],
)
def test_what_cannot_be_read(arguments, message):
    with pytest.raises(UserError, match=message):
        RelationsAsExtraction(**{"reader": Made(), "name": "made", **arguments}).read(None, 0)


def test_words_of_two_labels():
    with pytest.raises(UserError, match="label 'a' are 'Same', those of 2"):
        RelationsAsExtraction(Made(), "made", "none", {"a": "Same", "b": "same "})

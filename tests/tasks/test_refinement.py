"""The refinement rules against the released code's results, and what ours do otherwise."""

from __future__ import annotations

import pytest

from lightning_rag.tasks.labels import RETACRED, SEMEVAL2010, TACRED
from lightning_rag.tasks.refinement import refine_decoder_only, refine_sequence_to_sequence

SORTED = tuple(sorted(TACRED))


def golden_case(golden, model):
    cases = [
        case
        for case in golden("relation_scorers")["cases"]
        if case["kind"] == "rag4re_refinement" and case["inputs"]["model"] == model
    ]
    [case] = cases
    given = case["inputs"]
    rows = zip(given["responses"], given["subject_types"], case["outputs"]["labels"], strict=True)
    return given["labels"], list(rows)


def test_sequence_to_sequence_equals_the_released_code(golden):
    labels, rows = golden_case(golden, "t5")
    assert len(rows) == 22
    for output, subject, expected in rows:
        assert refine_sequence_to_sequence(output, labels, subject) == expected, output


def test_decoder_only_equals_the_released_code(golden):
    labels, rows = golden_case(golden, "llama/mistral")
    assert len(rows) == 10
    for output, subject, expected in rows:
        assert refine_decoder_only(output, labels, subject, by_subject=False) == expected, output


def test_the_subject_decides_in_decoders_too(golden):
    """The only one of the golden cases in which the rule that is never reached would matter."""
    labels, rows = golden_case(golden, "llama/mistral")
    other = [
        (output, refine_decoder_only(output, labels, subject))
        for output, subject, expected in rows
        if refine_decoder_only(output, labels, subject) != expected
    ]
    assert other == [("[INST] q [/INST] Answer: org\\:parents", "org:parents")]


@pytest.mark.parametrize("refine", [refine_sequence_to_sequence, refine_decoder_only])
@pytest.mark.parametrize("labels", [TACRED, RETACRED, SEMEVAL2010])
def test_every_label_stands_for_itself(refine, labels):
    """Whatever their order; a label of both prefixes with the subject that belongs to it."""
    for order in (sorted(labels), sorted(labels, reverse=True)):
        for label in labels:
            subject = "ORGANIZATION" if label.startswith("org:") else "PERSON"
            assert refine(label, order, subject) == label


@pytest.mark.parametrize("order", [SORTED, SORTED[::-1]])
@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("Answer: org:founded_by", "org:founded_by"),
        ("Answer: org:founded", "org:founded"),
        ("It is :founded, not :founded_by", "org:founded_by"),
    ],
)
def test_a_label_that_begins_with_another(order, output, expected):
    assert refine_decoder_only(output, order) == expected


def test_the_first_label_of_the_list_counts():
    output = "per:title or per:age"
    assert refine_decoder_only(output, SORTED) == "per:age"
    assert refine_decoder_only(output, SORTED[::-1]) == "per:title"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("[INST] per:age? [/INST] per:title", "per:title"),
        ("[INST] q [/INST] Answer: no, Answer:\nper:spouse", "per:spouse"),
        ("[INST] q [/INST] per:spouse [/INST] per:title", "per:spouse"),
        ("there is No Relation here", "no_relation"),
        ("no relation, or per:title", "per:title"),
        ('"org:pet" "per:friend"', "friend"),
        ('org:pets" is it', "pet"),
        ("title", ""),
        ("", ""),
    ],
)
def test_decoder_only_rules(output, expected):
    assert refine_decoder_only(output, SORTED) == expected


def test_a_data_set_with_one_of_the_two_prefixes():
    """Re-TACRED has neither org:parents nor per:alternate_names."""
    labels = sorted(RETACRED)
    for refine in (refine_sequence_to_sequence, refine_decoder_only):
        assert refine("org:parents", labels, "ORGANIZATION") == "per:parents"
        assert refine("per:alternate_names", labels, "PERSON") == "org:alternate_names"


def test_without_prefixes():
    labels = sorted(SEMEVAL2010)
    answer = "It is Message-Topic(e2,e1)"
    assert refine_sequence_to_sequence(answer, labels) == "Message-Topic(e2,e1)"
    assert refine_decoder_only(answer.lower() + ".", labels) == "Message-Topic(e2,e1)"
    assert refine_sequence_to_sequence("Message-Topic(e2, e1)", labels) == "e1)"
    assert refine_decoder_only("no relation", labels) == ""


def test_no_labels():
    assert refine_sequence_to_sequence("per:age", ()) == "age"
    assert refine_decoder_only("per:age", ()) == ""

"""Both scorers of information extraction, against the released programs' results."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from lightning_rag.metrics.spans import (
    ExtractionF1,
    clean_facts,
    clean_form,
    clean_gold,
    extraction_f1,
    normalise,
    official_facts,
    official_gold,
    says_nothing,
    score_output,
)
from lightning_rag.tasks.information_extraction import InformationExtraction, linearize
from lightning_rag.types import Extraction, Fact, Instance, Mention, Predictions, RagBatch

KINDS = {"NER": "entities", "RE": "relations", "EET": "events", "EEA": "arguments"}


def of_kind(golden, kind):
    cases = [case for case in golden("span_metrics")["cases"] if case["kind"] == kind]
    assert cases
    return cases


def read(case):
    """Return the released scorer's sets of one golden case, by ours."""
    given = case["inputs"]
    kind = KINDS[given["task"]]
    return (
        official_facts(given["prediction"], given["query"], kind),
        official_gold(given["answer_text"], kind),
    )


def test_official_sets_equal_the_released_ones(golden):
    for case in of_kind(golden, "ruie"):
        predicted, gold = read(case)
        if "error" in case["outputs"]:
            assert predicted == set(), case["id"]
            continue
        assert sorted(predicted) == case["outputs"]["pred_set"], case["id"]
        assert sorted(gold) == case["outputs"]["gold_set"], case["id"]
        for name, value in extraction_f1([predicted], [gold]).items():
            assert value == pytest.approx(case["outputs"][name], abs=1e-9), case["id"]


def test_official_aggregates_equal_the_released_ones(golden):
    by_id = {case["id"]: case for case in of_kind(golden, "ruie")}
    for case in of_kind(golden, "ruie_aggregate"):
        pairs = [read(by_id[name]) for name in case["inputs"]["case_ids"]]
        scores = extraction_f1([p for p, _ in pairs], [g for _, g in pairs])
        for name, value in scores.items():
            assert value == pytest.approx(case["outputs"][name], abs=1e-9), case["id"]


def test_normalisation_equals_the_released_one(golden):
    for case in of_kind(golden, "ruie_normalise"):
        assert normalise(case["inputs"]["text"]) == case["outputs"]["text"], case["id"]


def uie_sets(case):
    """Return (name of the figure, predictions, gold) of what UIE's scorer compares."""
    given = case["inputs"]
    for mode in ("string", "offset"):
        key = "text" if mode == "string" else "offset"
        predicted = [record[mode] for record in given["pred"]]

        def place(mention, key=key):
            return tuple(mention[key]) if key == "offset" else mention[key]

        def frozen(item):
            return tuple(map(frozen, item)) if isinstance(item, list) else item

        if case["kind"] == "uie_entity":
            gold = [[(e["type"], place(e)) for e in record] for record in given["gold"]]
            yield f"{mode}-ent", [list(map(frozen, p)) for p in predicted], gold
        elif case["kind"] == "uie_relation":
            for name, types in (("strict", True), ("boundary", False)):
                gold = [
                    [
                        (
                            r["type"],
                            *((a["type"], place(a)) if types else (place(a),) for a in r["args"]),
                        )
                        for r in record
                    ]
                    for record in given["gold"]
                ]
                read = [
                    [
                        (
                            r[0],
                            *(
                                (k, frozen(m)) if types else (frozen(m),)
                                for k, m in (r[1:3], r[3:])
                            ),
                        )
                        for r in record
                    ]
                    for record in predicted
                ]
                yield f"{mode}-rel-{name}", read, gold
        else:
            triggers = [[(e["type"], place(e)) for e in record] for record in given["gold"]]
            read = [[(e["type"], frozen(e["trigger"])) for e in record] for record in predicted]
            yield f"{mode}-evt-trigger", read, triggers
            roles = [
                [(e["type"], a["type"], place(a)) for e in record for a in e["args"]]
                for record in given["gold"]
            ]
            read = [
                [(e["type"], role, frozen(m)) for e in record for role, m in e["roles"]]
                for record in predicted
            ]
            yield f"{mode}-evt-role", read, roles


@pytest.mark.parametrize("kind", ["uie_entity", "uie_relation", "uie_event"])
def test_extraction_f1_equals_uie_without_repeated_facts(golden, kind):
    # strict and boundary scores, by strings and by offsets, are this function on other tuples
    (case,) = [c for c in of_kind(golden, kind) if c["inputs"]["match_mode"] == "set"]
    figures = list(uie_sets(case))
    assert len(figures) == (2 if kind == "uie_entity" else 4)
    for name, predicted, gold in figures:
        scores = extraction_f1(predicted, gold)
        for ours, theirs in (("precision", "P"), ("recall", "R"), ("f1", "F1")):
            expected = case["outputs"][f"{name}-{theirs}"]
            assert 100 * scores[ours] == pytest.approx(expected, abs=1e-9), name


def test_extraction_f1_against_a_loop():
    draw = random.Random(0)
    records = [[draw.choices("abcdef", k=draw.randint(0, 5)) for _ in range(40)] for _ in "pt"]
    correct = predicted = gold = 0
    for p, t in zip(*records, strict=True):
        for one in "abcdef":
            correct += one in p and one in t
            predicted += one in p
            gold += one in t
    scores = extraction_f1(*records)
    assert scores["precision"] == correct / predicted
    assert scores["recall"] == correct / gold
    assert scores["f1"] == pytest.approx(2 / (predicted / correct + gold / correct))


def test_extraction_f1_of_nothing_and_of_unequal_lists():
    for p, t in (([], []), ([[]], [[]]), ([["a"]], [[]]), ([[]], [["a"]])):
        assert extraction_f1(p, t)["f1"] == 0
    with pytest.raises(ValueError, match="expected 2, as many as targets, got 1"):
        extraction_f1([[]], [[], []])


def fact(kind, *texts):
    return Fact(kind, tuple(map(Mention, texts)))


def facts(output, schema=("person", "location"), kind="entities", **sentence):
    return set(clean_facts(output, schema, kind, **sentence))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("person: Bob; location: Oslo", {("person", "bob"), ("location", "oslo")}),
        ("PERSON :Bob ;Location:Oslo;", {("person", "bob"), ("location", "oslo")}),
        ("person: Bob\nperson: Kim", {("person", "bob"), ("person", "kim")}),
        ("person: Bob; person: Bob", {("person", "bob")}),
        ("the person: Bob; xperson: Kim; person Bob", set()),  # no left border in the released code
        ("person: Bob; vehicle: car", {("person", "bob")}),
        ("person: Bob; Kim", {("person", "bob")}),
        ("person:; person: ;", set()),
        ("None", set()),
        ("", set()),
        ("person: a: b", {("person", "a:b")}),
    ],
)
def test_what_the_clean_scorer_reads(output, expected):
    assert facts(output) == expected


def test_a_longer_label_is_not_taken_for_a_shorter_one():
    schema = ("per", "per:title", "work", "work for")
    assert facts("per:title: boss; per: Ann; work for: a, b; work: c, d", schema, "relations") == {
        ("per:title", "boss"),
        ("per", "ann"),
        ("work for", "a,b"),
        ("work", "c,d"),
    }


def test_gold_outputs_that_the_released_scorer_gets_wrong_are_right():
    # spec section 16, bugs 13 to 15
    for schema, sentence, gold in (
        (("person",), "Tim O 'Brien ( CEO ) spoke.", [("person", "Tim O 'Brien")]),
        (("person", "place (city)"), "Bob in Rome", [("person", "Bob"), ("place (city)", "Rome")]),
        (("state - run firm",), "Acme is large.", [("state - run firm", "Acme")]),
        (("a, b", "c"), "x y", [("a, b", "x"), ("c", "y")]),
        (("song",), "He sang Stop; Go again.", [("song", "Stop; Go")]),
        (("place", "location"), "location: Rome", [("location", "location")]),
    ):
        asked = Extraction("entities", schema, tuple(fact(*one) for one in gold))
        answer = linearize(asked)
        instance = Instance("i", sentence, (answer,), extraction=asked)
        record = InformationExtraction().source(instance).text
        scored = score_output(answer, instance, record)
        assert clean_facts(answer, schema, "entities", sentence=sentence) == clean_gold(asked)
        assert not scored.unparsed
        clean = [sum(c) for c in zip(*scored.counts["clean"].values(), strict=True)]
        assert clean == [len(gold)] * 3


def test_a_trigger_with_a_bracket_is_no_schema():
    asked = Extraction("arguments", ("place",), (fact("place", "Rome"),), fact("Go", "go [1"))
    instance = Instance("i", "go [1 Rome", ("place: Rome",), extraction=asked)
    scored = score_output("place: Rome", instance, InformationExtraction().source(instance).text)
    assert scored.counts["clean"] == {"place": (1, 1, 1)}
    assert scored.counts["official"] == {"place": (0, 0, 1)}


def test_semicolons_belong_to_a_mention_where_the_sentence_has_them():
    sentence = "Stop ; Go ; Now, by Ann; Bob slept."
    song = ("song", "by")
    assert facts("song: Stop; Go; Now", song, sentence=sentence) == {("song", "stop;go;now")}
    assert facts("song: Stop; Now", song, sentence=sentence) == {("song", "stop")}
    assert facts("by: Go; by: Now", song, sentence=sentence) == {("by", "go"), ("by", "now")}
    relation = facts("by: Stop; Go, Ann", ("by",), "relations", sentence=sentence)
    assert relation == {("by", "stop;go,ann")}
    assert facts("song: Stop; x; Go", song, sentence=sentence) == {("song", "stop")}


def test_entities_that_the_sentence_lacks_count_for_nothing():
    output = "person: Bob; location: Mars"
    assert facts(output, sentence="Bob slept.") == {("person", "bob")}
    assert facts(output, kind="events", sentence="Bob slept.") == facts(output)


def test_what_a_tokeniser_loses_makes_no_difference():
    # texts with 50%, AT&T, quotes and accents as an uncased WordPiece tokeniser writes them
    for text, written in (
        ('50% of AT&T\'s "Zoë"', '50 % of at & t \' s " zoe "'),
        ("Mr. O\u2019Brien-Lee (CEO)", "mr . o ' brien - lee ( ceo )"),
        ("DATE_OF_BIRTH", "date _ of _ birth"),
        ("$5/day", "$ 5 / day"),
    ):
        assert clean_form(text) == clean_form(written)
    assert clean_form("a b") != clean_form("ab")
    assert clean_form("Location") == "location"


def test_texts_equal_by_the_released_normalisation_are_equal_by_the_clean_one():
    # as long as no "location" is in them: the clean one only ever lets more pass
    draw = random.Random(0)
    pieces = ["a", "B", " ", "  ", ",", ";", ".", "-", "'", "\u2019", "{", "}", "(", ":", "_", "\n"]
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 5))) for _ in range(1500)]
    groups = {}
    for text in texts:
        groups.setdefault(normalise(text), set()).add(text)
    several = [group for group in groups.values() if len(group) > 1]
    assert len(several) > 50
    for group in several:
        assert len({clean_form(text) for text in group}) == 1, group


def test_says_nothing():
    for text in ("None", "none.", " NONE \n"):
        assert says_nothing(text)
    for text in ("", "None of it", "person: none"):
        assert not says_nothing(text)


def record(instance):
    return InformationExtraction().source(instance).text


def make(task, gold, held_out=False, schema=("person", "location", "thing")):
    asked = Extraction("entities", schema, tuple(gold))
    text = " ".join(fact.mentions[0].text for fact in gold) + " Bob Oslo it"
    answer = linearize(asked)
    return Instance("i", text, (answer,), extraction=asked, task=task, held_out=held_out)


def updated(metric, instances, texts, size=3):
    for start in range(0, len(instances), size):
        part = instances[start : start + size]
        empty = torch.zeros(len(part), 0)
        rows = [torch.tensor([])] * len(part)
        batch = RagBatch(
            torch.arange(len(part)), part, empty.long(), empty, empty, rows, rows, rows
        )
        metric.update(Predictions(texts[start : start + size], empty), batch)
    return {name: float(value) for name, value in metric.compute().items()}


def test_figures_by_task_and_on_average():
    bob, oslo = fact("person", "Bob"), fact("location", "Oslo")
    instances = [
        make("NER_a", [bob, oslo]),
        make("NER_a", [bob]),
        make("NER_b", [oslo]),
        make("NER_c", [bob], held_out=True),
        make("NER_c", [], held_out=True),
    ]
    texts = ["person: Bob", "person: Bob; location: Oslo", "nonsense", "person: Bob", "None"]
    found = updated(ExtractionF1(record), instances, texts)
    # a: 2 correct, 3 predicted, 3 gold; b: 0, 0, 1; c: 1, 1, 1
    assert found == pytest.approx(
        {
            "f1": (2 / 3 + 0 + 1) / 3,
            "f1/NER_a": 2 / 3,
            "f1/NER_b": 0,
            "f1/NER_c": 1,
            "held_in_f1": 1 / 3,
            "held_out_f1": 1,
            "official_f1": 5 / 9,
            "official_f1/NER_a": 2 / 3,
            "official_f1/NER_b": 0,
            "official_f1/NER_c": 1,
            "official_held_in_f1": 1 / 3,
            "official_held_out_f1": 1,
            "unparsed_rate": 1 / 5,
        }
    )


def test_held_out_figures_are_there_where_the_data_have_held_out_tasks():
    bob = fact("person", "Bob")
    found = updated(ExtractionF1(record), [make("NER_a", [bob])], ["person: Bob"])
    assert set(found) == {"f1", "f1/NER_a", "official_f1", "official_f1/NER_a", "unparsed_rate"}
    alone = updated(ExtractionF1(record), [make("NER_a", [bob], True)], ["person: Bob"])
    assert set(alone) == {*found, "held_out_f1", "official_held_out_f1"}
    unnamed = updated(ExtractionF1(record), [make("", [bob])], ["person: Bob"])
    assert set(unnamed) == {"f1", "official_f1", "unparsed_rate"}


def test_figures_by_label_equal_scores_of_the_label_alone():
    draw = random.Random(2)
    schema = ("person", "per", "far location")
    names = ["Ann", "Bob", "Oslo"]

    def drawn():
        pairs = itertools.product(schema, names)
        return [fact(*pair) for pair in pairs if draw.random() < 0.4]

    instances = [make(draw.choice(["NER_a", "NER_b"]), drawn(), False, schema) for _ in range(40)]
    instances = [replace(i, text="Ann Bob Oslo") for i in instances]
    texts = [linearize(Extraction("entities", schema, tuple(drawn()))) for _ in instances]
    found = updated(ExtractionF1(record, per_type=True), instances, texts)
    for task, label in itertools.product(("NER_a", "NER_b"), (*schema, None)):
        chosen = [(t, i) for t, i in zip(texts, instances, strict=True) if i.task == task]
        predicted = [clean_facts(t, schema, "entities", sentence=i.text) for t, i in chosen]
        gold = [clean_gold(i.extraction) for _, i in chosen]
        sets = [[{f for f in one if label in (f[0], None)} for one in p] for p in (predicted, gold)]
        path = task if label is None else f"{task}/{label}"
        for name, value in extraction_f1(*sets).items():
            assert found[f"{name}/{path}"] == pytest.approx(value), path
            assert found[f"official_{name}/{path}"] == pytest.approx(value), path  # no bug in these


def test_outputs_without_a_fact_are_counted():
    bob = fact("person", "Bob")
    outputs = {
        "None": False,
        "none.": False,
        "person: Bob": False,
        "person: Zorg": False,  # legal, though the sentence lacks it
        "": True,
        "I think Bob": True,
        "{'person': 'Bob'}": True,
        "vehicle: Bob": True,
    }
    instances = [make("NER_a", [bob]) for _ in outputs]
    found = updated(ExtractionF1(record), instances, list(outputs))
    assert found["unparsed_rate"] == pytest.approx(Counter(outputs.values())[True] / len(outputs))


def test_a_metric_starts_anew_after_reset():
    metric = ExtractionF1(record)
    bob = fact("person", "Bob")
    first = updated(metric, [make("NER_a", [bob])], ["person: Bob"])
    metric.reset()
    assert updated(metric, [make("NER_b", [bob])], ["person: Bob"]).keys() != first.keys()


def test_bad_batches_are_refused():
    metric = ExtractionF1(record)
    with pytest.raises(ValueError, match="'i' has no facts to compare"):
        score_output("None", replace(make("NER_a", []), extraction=None), "")
    with pytest.raises(ValueError, match="'i' has no answer to compare"):
        updated(metric, [replace(make("NER_a", []), answers=())], ["None"])
    with pytest.raises(ValueError, match="expected 1, one for each query of the batch, got 0"):
        updated(metric, [make("NER_a", [])], [])

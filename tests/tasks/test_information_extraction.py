import random
import re
from dataclasses import replace

import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.errors import UserError
from lightning_rag.tasks.information_extraction import InformationExtraction, linearize
from lightning_rag.tasks.records import TASK_NAMES, spell_labels
from lightning_rag.types import (
    Extraction,
    Fact,
    Instance,
    Mention,
    Passage,
    Predictions,
    Prompt,
    RagBatch,
)

TEXT = "Ann Lee of Acme left Lima."


def fact(kind, *texts, types=("", "")):
    mentions = tuple(Mention(text, type=t) for text, t in zip(texts, types, strict=False))
    return Fact(kind, mentions)


ENTITIES = Extraction(
    "entities",
    ("person", "location", "company"),
    (Fact("person", (Mention("Ann Lee", 0, 7),)), Fact("location", (Mention("Lima", 21, 25),))),
)
RELATIONS = Extraction(
    "relations",
    ("works for", "lives in"),
    (
        fact("works for", "Ann Lee", "Acme", types=("person", "company")),
        fact("lives in", "Ann Lee", "Lima", types=("person", "")),
    ),
)
EVENTS = Extraction("events", ("Leave", "Attack"), (fact("Leave", "left"),))
ARGUMENTS = Extraction(
    "arguments", ("agent", "place"), (fact("place", "Lima"),), trigger=fact("Leave", "left")
)
KINDS = (ENTITIES, RELATIONS, EVENTS, ARGUMENTS)


def make(extraction=ENTITIES, text=TEXT, name="i1", task="NER_x", **fields):
    answers = (linearize(extraction),)
    return Instance(name, text, answers, extraction=extraction, task=task, **fields)


def demonstration(instance):
    return Passage(instance.id, instance.text, instance=instance)


@pytest.mark.parametrize(
    ("extraction", "answer"),
    [
        (ENTITIES, "person: Ann Lee; location: Lima"),
        (RELATIONS, "works for: Ann Lee, Acme; lives in: Ann Lee, Lima"),
        (EVENTS, "Leave: left"),
        (ARGUMENTS, "place: Lima"),
        (replace(ENTITIES, facts=()), "None"),
        (replace(ENTITIES, facts=(fact("person", " Ann\n Lee "),)), "person: Ann Lee"),
    ],
)
def test_linearised_answers(extraction, answer):
    assert linearize(extraction) == answer


@pytest.mark.parametrize(
    ("extraction", "first", "schema"),
    [
        (ENTITIES, "Named entity recognition", "[person, location, company]"),
        (RELATIONS, "Relation extraction", "[works for, lives in]"),
        (EVENTS, "Event detection", "[Leave, Attack]"),
        (
            ARGUMENTS,
            "Event argument extraction",
            'Given event trigger: "Leave: left"; Candidate arguments: [agent, place]',
        ),
    ],
)
def test_the_record_has_the_four_published_lines(extraction, first, schema):
    task, instance = InformationExtraction(), make(extraction)
    lines = ["Task: " + first, "Schema: " + schema, f'Input: "{TEXT}"', "Output:"]
    assert task.query(instance).text == task.source(instance).text == "\n".join(lines)
    answered = "\n".join(lines) + " " + instance.answers[0]
    passage = demonstration(instance)
    assert task.key(passage).text == task.labelled_key(passage, " ").text == answered
    assert task.passage(passage).text == answered
    assert task.passage(passage, with_label=False).text == "\n".join(lines)
    assert task.labelled_key(passage, " [SEP] ").text.endswith(
        "Output: [SEP] " + task.target(instance)
    )


def test_ranges_are_those_of_the_cue_and_the_answer():
    task, instance = InformationExtraction(prompt="instruction"), make()
    source = task.source(instance)
    start, end = source.spans["lead"]
    assert start == 0
    assert source.text[end:] == task.query(instance).text
    for text in (source, task.query(instance), task.key(demonstration(instance))):
        assert text.text[slice(*text.spans["cue"])] == "Output:"
    for text in (
        task.passage(demonstration(instance)),
        task.labelled_key(demonstration(instance), "</s>"),
    ):
        assert text.text[slice(*text.spans["label"])] == instance.answers[0]


def test_a_query_says_nothing_of_its_gold_facts():
    task = InformationExtraction(prompt="instruction")
    for extraction in KINDS:
        asked = make(extraction)
        bare = make(replace(extraction, facts=()))
        assert task.query(asked) == task.query(bare)
        assert task.source(asked) == task.source(bare)


def test_line_breaks_of_a_text_do_not_break_its_record():
    text = "One line.\n\n  Another\u2028one. "
    for tags in ("none", "untyped"):
        rendered = InformationExtraction().tagged_query(make(text=text), tags).text
        assert len(rendered.splitlines()) == 4
        assert "One line. Another one." in rendered


@pytest.mark.parametrize(
    ("extraction", "untyped", "typed"),
    [
        (
            ENTITIES,
            "<Keyword> Ann Lee </Keyword> of Acme left <Keyword> Lima </Keyword>.",
            "<Keyword> person: Ann Lee </Keyword> of Acme left "
            "<Keyword> location: Lima </Keyword>.",
        ),
        (
            RELATIONS,  # Ann Lee is a mention of two relations, and tagged once
            "<Keyword> Ann Lee </Keyword> of <Keyword> Acme </Keyword> left "
            "<Keyword> Lima </Keyword>.",
            "<Keyword> person: Ann Lee </Keyword> of <Keyword> company: Acme </Keyword> left "
            "<Keyword> Lima </Keyword>.",
        ),
        (
            EVENTS,
            "Ann Lee of Acme <Keyword> left </Keyword> Lima.",
            "Ann Lee of Acme <Keyword> Leave: left </Keyword> Lima.",
        ),
        (
            ARGUMENTS,
            "Ann Lee of Acme <Keyword> left </Keyword> <Keyword> Lima </Keyword>.",
            "Ann Lee of Acme <Keyword> Leave: left </Keyword> <Keyword> place: Lima </Keyword>.",
        ),
    ],
)
def test_tagged_records(extraction, untyped, typed):
    task, instance = InformationExtraction(), make(extraction)
    passage = demonstration(instance)
    plain = task.key(passage).text.split("\n")
    for tags, sentence in (("untyped", untyped), ("typed", typed), ("none", f'"{TEXT}"')):
        rendered = task.tagged_query(instance, tags)
        assert rendered == task.tagged_key(passage, tags)
        assert rendered.text.split("\n") == [*plain[:2], f"Input: {sentence}", plain[3]]
        assert rendered.text[slice(*rendered.spans["cue"])] == "Output:"


def test_the_released_places_of_keywords():
    extraction = Extraction("entities", ("sum",), (fact("sum", "$5"),))
    instance = make(extraction, "It cost $5.")
    exact = InformationExtraction().tagged_query(instance, "untyped").text
    assert "It cost <Keyword> $5 </Keyword>." in exact
    released = InformationExtraction(keyword_places="released").tagged_query(instance, "untyped")
    assert "Input: It cost $5.\n" in released.text


def test_mentions_that_do_not_match_their_text_are_searched_for():
    wrong = Extraction("entities", ("person",), (Fact("person", (Mention("Acme", 0, 4),)),))
    task, instance = InformationExtraction(), make(wrong)
    task.check_answers([instance])
    assert (
        "Ann Lee of <Keyword> Acme </Keyword> left" in task.tagged_query(instance, "untyped").text
    )


def test_plain_passages_and_records_without_answer():
    task = InformationExtraction()
    plain = Passage("p", "Some text.")
    for rendered in (
        task.key(plain),
        task.labelled_key(plain, " "),
        task.tagged_key(plain, "typed"),
        task.passage(plain, with_label=False),
    ):
        assert rendered.text == "Some text."
    with pytest.raises(ValueError, match="no demonstration"):
        task.passage(plain)
    unlabelled = replace(make(), answers=(), extraction=replace(ENTITIES, facts=()))
    assert task.key(demonstration(unlabelled)) == task.query(unlabelled)
    for call in (task.target, lambda i: task.tagged_query(i, "none")):
        with pytest.raises(ValueError, match="'i1' has no answer"):
            call(unlabelled)
    task.check_answers([unlabelled])


LABELS = ("place (city)", "a, b", "c++", "per:title", "x|y", "[z]", "1.0*", "^$", "\\d")


@pytest.mark.parametrize("kind", ["entities", "relations", "events", "arguments"])
def test_labels_with_brackets_commas_and_regex_characters_are_read_back(kind):
    trigger = fact("Leave", "[left]") if kind == "arguments" else None
    count = 2 if kind == "relations" else 1
    facts = tuple(fact(label, *["Ann Lee", "Lima"][:count]) for label in LABELS)
    task, instance = InformationExtraction(), make(Extraction(kind, LABELS, facts, trigger))
    task.check_answers([instance])
    output = task.parse(instance.answers[0], instance)
    found = scores(task, [instance], [output])
    assert found["f1"] == 1
    assert found["unparsed_rate"] == 0


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("person: Ann Lee", "person: Ann Lee"),
        ("  None \n", "None"),
        ("Here they are.\n\nperson: Ann Lee\nlocation: Lima", "person: Ann Lee\nlocation: Lima"),
        ("person: Ann Lee\n \nTask: Relation extraction\nOutput: None", "person: Ann Lee"),
        ("None.\n\nperson: Ann Lee", "None."),
        ("Output: person: Ann Lee", "person: Ann Lee"),
        ("PERSON : ann lee ;location: lima", "person: ann lee ; location: lima"),
        ("one\n\ntwo\n", "two"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_parsing_takes_the_part_that_answers(output, answer):
    assert InformationExtraction().parse(output, make()) == answer


def test_labels_are_spelled_as_in_the_schema_and_names_as_written():
    schema = ("per:title", "per", "born in", "A (b)", "DATE_OF", "C-D(e1,e2)", "c++", "1.5")
    wordpiece = re.compile(r"([^\w\s]|_)")
    for label in schema:
        for written in (label, label.upper(), wordpiece.sub(r" \1 ", label).lower()):
            for lead in ("", "per: x . y; ", "A (b): z\n"):
                got = spell_labels(f"{lead}{written} : O ' Neil, Per : x", schema)
                assert got == f"{lead}{label}: O ' Neil, Per : x"
    for other in ("bornin: x", "the per: x", "xper: y", "per x: y", "peers: x"):
        assert spell_labels(other, schema) == other
    assert spell_labels("per\u017f : x", ("pers",)) == "per\u017f: x"  # a long s


def test_answers_are_free_text():
    task = InformationExtraction()
    assert task.options(make()) is None
    assert task.option_target(make(), "x") == "x"


def test_matching_is_by_task_kind_and_type():
    task = InformationExtraction()
    query = make()
    person = replace(ENTITIES, facts=(fact("person", "Bob"),))
    company = replace(ENTITIES, facts=(fact("company", "Acme"),))
    nothing = replace(ENTITIES, facts=())
    assert task.matches(query, demonstration(make(person)))
    assert not task.matches(query, demonstration(make(company)))
    assert not task.matches(query, demonstration(make(person, task="NER_y")))
    assert not task.matches(query, demonstration(make(nothing)))
    assert task.matches(make(nothing), demonstration(make(nothing)))
    assert not task.matches(make(nothing), demonstration(replace(make(nothing), answers=())))
    assert not task.matches(replace(query, answers=()), demonstration(query))
    assert not task.matches(query, Passage("p", "text"))
    events = Extraction("events", ("person",), (fact("person", "Bob"),))
    assert not task.matches(query, demonstration(make(events)))


def test_matching_rows_equal_asking_for_every_pair():
    draw = random.Random(0)

    def record(number):
        types = draw.sample(ENTITIES.schema, draw.randint(0, 2))
        extraction = replace(ENTITIES, facts=tuple(fact(t, "Ann") for t in types))
        instance = make(extraction, name=str(number), task=draw.choice(["NER_x", "NER_y"]))
        return replace(instance, answers=()) if draw.random() < 0.1 else instance

    task = InformationExtraction()
    instances = [record(n) for n in range(30)]
    passages = [demonstration(record(n)) for n in range(40)] + [Passage("p", "text")]
    for instance, rows in zip(instances, task.matching_rows(instances, passages), strict=True):
        expected = [row for row, p in enumerate(passages) if task.matches(instance, p)]
        assert rows.tolist() == expected


def scores(task, instances, texts, ks=(1,)):
    metrics = task.metrics(ks)
    batch = RagBatch(
        rows=torch.arange(len(instances)),
        instances=instances,
        candidate_ids=torch.zeros(len(instances), 1, dtype=torch.long),
        candidate_scores=torch.zeros(len(instances), 1),
        relevance=torch.ones(len(instances), 1),
        relevant_rows=[torch.tensor([0])] * len(instances),
        answer_rows=[torch.tensor([0])] * len(instances),
        excluded_rows=[torch.tensor([], dtype=torch.long)] * len(instances),
    )
    metrics.update(Predictions(texts, torch.zeros(len(instances), 1)), batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_read_the_task_s_own_records():
    task = InformationExtraction()
    instances = [make(extraction) for extraction in KINDS]
    found = scores(task, instances, [i.answers[0] for i in instances])
    assert found["f1"] == found["f1/NER_x"] == found["official_f1"] == found["recall@1"] == 1
    assert found["unparsed_rate"] == 0
    assert not any("person" in name for name in found)
    detailed = scores(InformationExtraction(per_type=True), instances, ["person: Ann Lee"] * 4)
    assert detailed["f1/NER_x/person"] == detailed["precision/NER_x/person"] == 1
    assert detailed["recall/NER_x/location"] == 0
    assert task.monitor == "f1"


def test_the_data_set_has_no_labels_of_its_own():
    task = InformationExtraction()
    task.prepare(())
    with pytest.raises(UserError, match="cause, effect; legal: a data set that is read for"):
        task.prepare(("cause", "effect"))


@pytest.mark.parametrize("argument", ["prompt", "keyword_places"])
def test_arguments_outside_what_is_legal(argument):
    with pytest.raises(UserError, match=rf"task\.{argument} is 'x'; legal: "):
        InformationExtraction(**{argument: "x"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extraction": None}, "has no schema to extract by"),
        ({"extraction": replace(ENTITIES, schema=())}, "empty schema"),
        ({"extraction": replace(ENTITIES, schema=("a", " "))}, "label ' ' in its schema"),
        ({"extraction": replace(ENTITIES, schema=("a;b",))}, "label 'a;b' in its schema"),
        ({"extraction": replace(ENTITIES, schema=("a\nb",))}, r"label 'a\\nb' in its schema"),
        ({"extraction": replace(ENTITIES, schema=("a", "a"))}, "'a' in its schema twice"),
        (
            {"extraction": replace(ENTITIES, schema=("city",))},
            "fact of type 'person'; legal: city",
        ),
        (
            {"extraction": replace(ENTITIES, facts=(fact("person", "Ann", "Bob"),))},
            r"mentions \['Ann', 'Bob'\] of 'person'; legal: 1",
        ),
        (
            {"extraction": replace(RELATIONS, facts=(fact("lives in", "Ann"),))},
            r"mentions \['Ann'\] of 'lives in'; legal: 2",
        ),
        (
            {"extraction": replace(ENTITIES, facts=(fact("person", " "),))},
            r"mentions \[' '\] of 'person'",
        ),
        ({"extraction": replace(ARGUMENTS, trigger=None)}, "asks for arguments and has no trigger"),
        (
            {"extraction": replace(EVENTS, trigger=ARGUMENTS.trigger)},
            "asks for events and has a trigger",
        ),
        (
            {"extraction": replace(ARGUMENTS, trigger=fact("Leave", ""))},
            r"mentions \[''\] of 'Leave'",
        ),
        ({"answers": ("person: Ann",)}, "legal: the text of its facts, 'person: Ann Lee; loc"),
        ({"answers": ("None", "None")}, "legal: the text of its facts"),
        ({"answers": ("",)}, "has the answer ''"),
    ],
)
def test_bad_instances_are_named(change, message):
    broken = replace(make(), **change)
    with pytest.raises(UserError, match=f"^instance 'i1' .*{message}"):
        InformationExtraction().check_answers([make(name="i0"), broken])


def test_a_query_without_schema_is_named_where_it_is_read():
    with pytest.raises(UserError, match="instance 'i1' has no schema"):
        InformationExtraction().query(Instance("i1", "text", ("x",)))


def test_every_kind_has_its_own_instruction():
    task = InformationExtraction(prompt="instruction")
    leads = {task.source(make(e)).text.partition("\n\n")[0] for e in KINDS}
    assert len(leads) == len(TASK_NAMES)


def words(generator, prompt):
    (row,) = generator._fit([prompt], 400, 1, split=False)
    return "".join(generator.tokenizer.decode(generator._row(row[0])).split())


@pytest.mark.parametrize("prompt", ["plain", "instruction"])
def test_a_decoder_reads_instruction_demonstrations_and_query_in_this_order(prompt):
    task = InformationExtraction(prompt=prompt)
    best = make(replace(ENTITIES, facts=(fact("person", "Bob"),)), "Bob slept.", "i2")
    worse = make(replace(ENTITIES, facts=()), "It rained.", "i3")
    shown = [task.passage(demonstration(i)) for i in (best, worse)]
    source = task.source(make())
    corpus = [source.text, *(text.text for text in shown), "Answer:"]
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig(architecture="decoder-only"), corpus * 3)
    got = words(generator, Prompt(source, tuple(shown), best_last=True))
    lead = source.text[: source.spans.get("lead", (0, 0))[1]]
    expected = lead + shown[1].text + shown[0].text + source.text[len(lead) :]
    assert got.removeprefix("[CLS]") == "".join(expected.split())
    assert got.endswith("Output:")  # without the generator's own cue

import random
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.decoder_only import DecoderOnlyGenerator
from lightning_rag.backbones.factory import build_generator
from lightning_rag.errors import UserError
from lightning_rag.metrics.relation import Repaired
from lightning_rag.tasks.labels import RETACRED, SEMEVAL2010, TABLES, TACRED
from lightning_rag.tasks.marking import Markers
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Instance, Passage, Predictions, Prompt, RagBatch, Span

NEGATIVE = {"semeval2010": "Other", "tacred": "no_relation", "retacred": "no_relation"}


def make(text="Bill lives in Hawaii.", label="per:cities_of_residence", types=("PERSON", "CITY")):
    head, tail = text.index("Bill"), text.index("Hawaii")
    answers = () if label is None else (label,)
    return Instance(
        "i1",
        text,
        answers,
        Span(head, head + 4, types[0]),
        Span(tail, tail + 6, types[1]),
    )


def prepared(name="tacred", **arguments):
    scorer = "semeval2010" if name == "semeval2010" else "tacred"
    given = {"wording": name, "scorer": scorer, "negative_label": NEGATIVE[name], **arguments}
    task = RelationExtraction(**given)
    task.prepare(tuple(TABLES[name]))
    return task


@pytest.mark.parametrize("target", ["label", "clause"])
@pytest.mark.parametrize("name", TABLES)
def test_every_label_is_read_back(name, target):
    task = prepared(name, target=target)
    instance = make(text="Bill (Zoë's {tail}) lives in Hawaii.")
    texts = [task.option_target(instance, label) for label in task.labels]
    assert len(set(texts)) == len(texts)
    for label, text in zip(task.options(instance), texts, strict=True):
        assert task.target(replace(instance, answers=(label,))) == text
        uncased = text.lower().replace("'", " ' ")
        for output in (text, f"  {text} ", text.upper(), uncased, label):
            assert task.parse(output, instance) == label


def test_both_forms_are_read_whatever_the_target():
    task = prepared(target="label")
    assert task.parse("Bill resides in the city Hawaii", make()) == "per:cities_of_residence"
    assert prepared(target="clause").parse("residence in city", make()) == "per:cities_of_residence"


@pytest.mark.parametrize("output", ["", "lives there", "Bill", "Ann resides in the city Hawaii"])
def test_other_outputs_stay_as_they_are(output):
    task = prepared()
    assert task.parse(output, make()) == output
    assert output not in task.labels


def test_words_of_one_label_that_name_another():
    task = RelationExtraction(scorer="accuracy", negative_label=None)
    task.prepare(("a", "b"), {"a": "b", "b": "a"})
    assert [task.parse(text, make()) for text in ("a", "b")] == ["b", "a"]


def test_a_mention_with_the_words_of_a_place_is_no_template():
    instance = Instance("i", "{tail} met Ann", ("per:spouse",), Span(0, 6), Span(11, 14))
    task = prepared(target="clause")
    assert task.target(instance) == "{tail} married Ann"
    assert task.parse("{tail} married Ann", instance) == "per:spouse"


@pytest.mark.parametrize(
    ("form", "text"), [("sentence", "Bill lives in Hawaii."), ("mentions", "Bill, Hawaii")]
)
def test_forms_of_a_demonstration(form, text):
    instance = make()
    demonstration = Passage("p1", instance.text, instance=instance)
    task = prepared(demonstration_text=form)
    assert task.passage(demonstration, with_label=False).text == text
    shown = task.passage(demonstration)
    assert shown.text == f"{text} Relation: residence in city"
    assert {name: shown.text[slice(*span)] for name, span in shown.spans.items()} == {
        "head": "Bill",
        "tail": "Hawaii",
        "label": "residence in city",
    }
    assert task.source(instance).text == prepared().source(instance).text


def test_renderings():
    task = prepared(retrieval_text="sentence")
    instance = make()
    demonstration = Passage("p1", instance.text, instance=instance)
    assert task.query(instance).text == task.key(demonstration).text == "Bill lives in Hawaii."
    marked = "@ * person * Bill @ lives in # ^ city ^ Hawaii #."
    assert task.source(instance).text == marked
    assert task.passage(demonstration, with_label=False) == task.source(instance)
    shown = task.passage(demonstration)
    assert shown.text == f"{marked} Relation: residence in city"
    assert {name: shown.text[slice(*span)] for name, span in shown.spans.items()} == {
        "head": "Bill",
        "tail": "Hawaii",
        "label": "residence in city",
    }
    clause = prepared(target="clause").passage(demonstration)
    assert clause.text[slice(*clause.spans["label"])] == "Bill resides in the city Hawaii"
    both = prepared(retrieval_text="marked")
    assert both.query(instance).text == both.key(demonstration).text == marked


@pytest.mark.parametrize("markers", ["punctuation", "tags", "clauses", "none"])
@pytest.mark.parametrize("retrieval_text", ["sentence", "marked"])
def test_nothing_a_retriever_or_a_query_reads_depends_on_the_label(markers, retrieval_text):
    task = prepared(markers=markers, retrieval_text=retrieval_text)
    one, other = make(), make(label="per:city_of_death")
    unlabelled = make(label=None)
    for render in (task.query, task.source):
        assert render(one) == render(other) == render(unlabelled)
    keys = [task.key(Passage("p", i.text, instance=i)) for i in (one, other, unlabelled)]
    assert keys[0] == keys[1] == keys[2]


@pytest.mark.parametrize(
    ("arguments", "sentence", "label"),
    [
        ({}, "Bill lives in Hawaii.", "residence in city"),
        ({"target": "clause"}, "Bill lives in Hawaii.", "Bill resides in the city Hawaii"),
        (
            {"retrieval_text": "marked"},
            "@ * person * Bill @ lives in # ^ city ^ Hawaii #.",
            "residence in city",
        ),
        (
            {"retrieval_text": "marked", "markers": "tags", "target": "clause"},
            "<e1>Bill</e1> lives in <e2>Hawaii</e2>.",
            "Bill resides in the city Hawaii",
        ),
        (
            {"retrieval_text": "marked", "markers": "clauses", "target": "clause"},
            "The subject is Bill . The object is Hawaii . Bill is of type person . "
            "Hawaii is of type city . Bill lives in Hawaii.",
            "Bill resides in the city Hawaii",
        ),
    ],
)
@pytest.mark.parametrize("separator", ["</s>", " [SEP] ", ""])
def test_labelled_key(arguments, sentence, label, separator):
    task = prepared(**arguments)
    instance = make()
    shown = task.labelled_key(Passage("p1", "other text", instance=instance), separator)
    assert shown.text == sentence + separator + label
    assert tuple(shown.spans) == task.slots
    assert [shown.text[slice(*shown.spans[name])] for name in task.slots] == [
        "Bill",
        "Hawaii",
        label,
    ]
    # the mentions are those of the sentence, not of a clause that names them again
    query = task.query(instance)
    assert {name: shown.spans[name] for name in ("head", "tail")} == dict(query.spans)


def test_labelled_key_without_a_label():
    task = prepared()
    assert task.labelled_key(Passage("p", "text"), "</s>") == task.key(Passage("p", "text"))
    unlabelled = make(label=None)
    with pytest.raises(ValueError, match="'i1' has no label"):
        task.labelled_key(Passage("p", unlabelled.text, instance=unlabelled), "</s>")


def test_a_passage_without_label():
    task = prepared()
    unlabelled = make(label=None)
    with pytest.raises(ValueError, match="'i1' has no label"):
        task.passage(Passage("p", unlabelled.text, instance=unlabelled))
    with pytest.raises(ValueError, match="'p' is no demonstration"):
        task.passage(Passage("p", "text"))
    assert task.passage(Passage("p", "text"), with_label=False).text == "text"
    assert task.key(Passage("p", "text")).text == "text"
    with pytest.raises(ValueError, match="no label"):
        task.target(unlabelled)


def test_unknown_label():
    with pytest.raises(UserError, match="'i1': label 'per:x' is unknown; legal: no_relation"):
        prepared().target(make(label="per:x"))


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("PERSON", "TITLE"), {"per:title"}),
        (("person", "state or province"), 3),
        (("PERSON", "LOCATION"), 10),
        (("ORGANIZATION", "DATE"), {"org:founded", "org:dissolved"}),
        (("ORGANIZATION", "TITLE"), 41),
        (("", ""), 41),
    ],
)
def test_type_constraints(types, expected):
    task = prepared(type_constraints=True)
    options = task.options(make(types=types))
    assert options[0] == "no_relation"
    assert list(options) == [label for label in task.labels if label in options]
    if isinstance(expected, int):
        assert len(options) == expected + 1
    else:
        assert set(options) == expected | {"no_relation"}
    assert prepared().options(make(types=types)) == tuple(TACRED)


def test_type_constraints_of_a_part_of_the_labels():
    task = RelationExtraction(type_constraints=True)
    task.prepare(("no_relation", "per:identity", "per:title"))
    assert task.options(make(types=("PERSON", "PERSON"))) == ("no_relation", "per:identity")
    assert task.options(make(types=("PERSON", "DATE"))) == ("no_relation",)
    without = RelationExtraction(type_constraints=True, scorer="accuracy", negative_label=None)
    without.prepare(("per:title", "per:age"))
    assert without.options(make(types=("PERSON", "TITLE"))) == ("per:title",)
    assert without.options(make(types=("PERSON", "DATE"))) == ("per:title", "per:age")


@pytest.mark.parametrize(
    ("arguments", "labels", "message"),
    [
        ({}, (), "without labels"),
        ({}, ("no_relation", "a", "a"), r"\['a'\] occur twice"),
        ({}, ("a", "b"), "negative_label is 'no_relation'.*legal: a, b"),
        ({"scorer": "semeval2010"}, ("Other", "a"), "a label is 'a'; legal: Other, Cause-Effect"),
        ({"wording": "tacred"}, ("no_relation", "a"), "label 'a' is not in the wording 'tacred'"),
        ({"type_constraints": True}, ("no_relation", "a"), "TACRED or of Re-TACRED; came 'a'"),
        (
            {"type_constraints": True},
            ("no_relation", "per:identity", "per:alternate_names"),
            "mix",
        ),
        (
            {"refinement": "decoder_only", "wording": "tacred"},
            ("no_relation", "per:age"),
            "'no_relation' is written 'no stated link'; legal: task.wording 'names'",
        ),
        (
            {"refinement": "decoder_only", "wording": "names", "target": "clause"},
            ("no_relation",),
            "task.target is clause; legal: .*'label'",
        ),
        (
            {"refinement": "sequence_to_sequence", "wording": "names"},
            ("no_relation", "born in"),
            "'born in'.*labels without spaces",
        ),
        (
            {"published_metrics": True, "scorer": "accuracy", "negative_label": None},
            ("a", "b"),
            "published_metrics is true, which needs a negative label",
        ),
        (
            {"published_metrics": True, "scorer": "accuracy", "negative_label": "Other"},
            ("a", "b"),
            "negative_label is 'Other'.*legal: a, b",
        ),
    ],
)
def test_labels_that_do_not_fit(arguments, labels, message):
    with pytest.raises(UserError, match=message):
        RelationExtraction(**arguments).prepare(labels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"target": "x"},
        {"markers": "x"},
        {"scorer": "x"},
        {"retrieval_text": "x"},
        {"prompt": "x"},
        {"refinement": "x"},
        {"target": "clause", "prompt": "instruction"},
    ],
)
def test_arguments_that_do_not_fit(arguments):
    with pytest.raises(UserError, match=f"{next(iter(arguments))}.*legal"):
        RelationExtraction(**arguments)


def test_all_markers_are_named_as_legal():
    with pytest.raises(UserError, match=f"legal: {', '.join(get_args(Markers))}$"):
        RelationExtraction(markers="x")


def test_prepare_comes_first():
    task = RelationExtraction()
    for call in (
        lambda: task.options(make()),
        lambda: task.target(make()),
        lambda: task.parse("x", make()),
        lambda: task.metrics((1,)),
    ):
        with pytest.raises(RuntimeError, match="prepare"):
            call()


def test_relevant_rows_equal_the_double_loop():
    rng = random.Random(1)
    names = ["a", "b", "c", None]
    made = [replace(make(label=rng.choice(names)), id=f"i{i}") for i in range(60)]
    passages = [Passage(i.id, i.text, instance=i) for i in made[:40]] + [Passage("plain", "text")]
    queries = [
        replace(i, relevant=rng.choice([(), ("i3", "i1", "i3"), ("plain",), ("gone",)]))
        for i in made
    ]
    task = RelationExtraction(scorer="accuracy", negative_label=None)
    task.prepare(("a", "b", "c", "d"))
    rows = task.relevant_rows(queries, passages)
    for query, found in zip(queries, rows, strict=True):
        expected = [r for r, passage in enumerate(passages) if task.relevant(query, passage)]
        assert found.dtype == np.int64
        assert found.tolist() == expected
        assert not found.flags.writeable
    assert task.relevant_rows(queries, []) != []
    assert task.relevant_rows([], passages) == []


def batch_of(labels):
    size = len(labels)
    relevance = torch.zeros(size, 6)
    relevance[:, 0] = relevance[0, 1] = relevance[0, 2] = 1
    return RagBatch(
        rows=torch.arange(size),
        instances=[make(label=label) for label in labels],
        candidate_ids=torch.arange(6).repeat(size, 1),
        candidate_scores=torch.zeros(size, 6),
        relevance=relevance,
        relevant_rows=[row.nonzero().flatten() for row in relevance],
        answer_rows=[row.nonzero().flatten() for row in relevance],
        excluded_rows=[torch.tensor([])] * size,
    )


@pytest.mark.parametrize(
    ("name", "scorer", "extra"),
    [
        ("tacred", "tacred", {"f1", "precision", "recall"}),
        ("retacred", "tacred", {"f1", "precision", "recall"}),
        ("semeval2010", "semeval2010", {"f1"}),
        ("semeval2010", "accuracy", set()),
    ],
)
def test_metric_names(name, scorer, extra):
    task = prepared(name, scorer=scorer)
    labels = [label for label in TABLES[name] if label != NEGATIVE[name]][:4]
    metrics = task.metrics((1, 5))
    ranking = torch.arange(6).flip(0).float().repeat(4, 1)
    metrics.update(Predictions([*labels[:3], "nonsense"], ranking), batch_of(labels))
    values = metrics.compute()
    shared = {"accuracy", "invalid_rate", "recall@1", "recall@5", "success@1", "success@5"}
    assert set(values) == shared | {"mrr", "ndcg@5"} | extra
    assert task.monitor in values
    assert task.monitor == ("accuracy" if scorer == "accuracy" else "f1")
    assert values["accuracy"].item() == pytest.approx(3 / 4)
    assert values["invalid_rate"].item() == pytest.approx(1 / 4)
    assert values["success@1"].item() == 1.0
    assert values["recall@1"].item() == pytest.approx((1 / 3 + 1 + 1 + 1) / 4)
    assert values["recall@5"].item() == values["mrr"].item() == 1.0
    if scorer == "tacred":
        assert values["recall"].item() == pytest.approx(3 / 4)


def test_metrics_with_equal_states_stay_apart():
    """torchmetrics would merge recall@1 and success@1, equal after the first batch."""
    metrics = prepared().metrics((1,))
    ranking = torch.arange(6).flip(0).float()
    first, second = batch_of(["per:age"] * 2), batch_of(["per:age"])
    first.relevance[0, 1:] = 0
    first.relevant_rows[0] = torch.tensor([0])
    metrics.update(Predictions(["per:age"] * 2, ranking.repeat(2, 1)), first)
    metrics.update(Predictions(["per:age"], ranking.repeat(1, 1)), second)
    values = metrics.compute()
    assert values["success@1"].item() == 1.0
    assert values["recall@1"].item() == pytest.approx((1 + 1 + 1 / 3) / 3)


def test_without_a_negative_label_all_labels_count():
    task = RelationExtraction(negative_label=None)
    task.prepare(("a", "b"))
    metrics = task.metrics(())
    batch = batch_of(["a", "b"])
    metrics.update(Predictions(["a", "a"], torch.zeros(2, 6)), batch)
    assert metrics.compute()["f1"].item() == pytest.approx(0.5)


def test_fresh_metrics_without_cut_offs():
    assert set(prepared().metrics(())) == {"accuracy", "f1", "mrr"}
    with pytest.raises(UserError, match=r"\[0, 2\]; legal: 1 or more"):
        prepared().metrics((0, 2))


def test_tables_name_the_official_labels():
    assert {label.split("(")[0] for label in SEMEVAL2010} - {"Other"} == {
        "Cause-Effect",
        "Component-Whole",
        "Content-Container",
        "Entity-Destination",
        "Entity-Origin",
        "Instrument-Agency",
        "Member-Collection",
        "Message-Topic",
        "Product-Producer",
    }
    assert set(RETACRED) - set(TACRED) == {
        "per:identity",
        "org:city_of_branch",
        "org:stateorprovince_of_branch",
        "org:country_of_branch",
    }


REFINED = {"wording": "names", "refinement": "sequence_to_sequence"}


@pytest.mark.parametrize(
    ("refinement", "output", "types", "expected", "repaired"),
    [
        ("sequence_to_sequence", "per:age", ("PERSON", "NUMBER"), "per:age", False),
        ("sequence_to_sequence", " per:age\n", ("PERSON", "NUMBER"), "per:age", False),
        ("sequence_to_sequence", "org:age", ("PERSON", "NUMBER"), "per:age", True),
        ("sequence_to_sequence", "It is per:age", ("PERSON", "NUMBER"), "per:age", True),
        ("sequence_to_sequence", "parents", ("ORGANIZATION", "PERSON"), "org:parents", True),
        ("sequence_to_sequence", "org:parents", ("PERSON", "PERSON"), "per:parents", True),
        ("sequence_to_sequence", "PER:AGE", ("PERSON", "NUMBER"), "PER:AGE", None),
        ("sequence_to_sequence", "no relation", ("PERSON", "NUMBER"), "no relation", None),
        ("decoder_only", "per:age", ("PERSON", "NUMBER"), "per:age", False),
        ("decoder_only", "PER:AGE", ("PERSON", "NUMBER"), "per:age", True),
        ("decoder_only", "no relation.", ("PERSON", "NUMBER"), "no_relation", True),
        ("decoder_only", "org:parents", ("ORGANIZATION", "PERSON"), "org:parents", False),
        (
            "decoder_only",
            'the "per:friend" one',
            ("PERSON", "PERSON"),
            'the "per:friend" one',
            None,
        ),
    ],
)
def test_parse_by_the_published_rules(refinement, output, types, expected, repaired):
    task = prepared(wording="names", refinement=refinement)
    label = task.parse(output, make(types=types))
    assert label == expected
    assert isinstance(label, Repaired) == bool(repaired)
    assert (label in task.labels) == (repaired is not None)


def test_rates_of_repaired_and_invented_labels():
    task = prepared(**REFINED)
    labels = ["per:age", "per:title", "per:spouse", "per:spouse"]
    outputs = ["per:age", "org:title", "per:friend", "It is per:age"]
    batch = batch_of(labels)
    texts = [task.parse(text, i) for text, i in zip(outputs, batch.instances, strict=True)]
    metrics = task.metrics(())
    metrics.update(Predictions(texts, torch.zeros(4, 6)), batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["repaired_rate"] == 2 / 4
    assert values["invalid_rate"] == 1 / 4
    assert values["accuracy"] == 2 / 4


@pytest.mark.parametrize(
    ("name", "scorer", "names"),
    [
        ("tacred", "tacred", {"negative"}),
        ("semeval2010", "semeval2010", {"negative", "micro19"}),
        ("semeval2010", "accuracy", {"negative"}),
    ],
)
def test_published_metrics_stand_beside_the_scorer(name, scorer, names):
    plain, beside = prepared(name, scorer=scorer), prepared(name, scorer=scorer)
    beside.published_metrics = True
    negative = NEGATIVE[name]
    positive = next(label for label in TABLES[name] if label != negative)
    batch = batch_of([negative, negative, positive, positive])
    found = []
    for task in (plain, beside):
        metrics = task.metrics((1,))
        metrics.update(Predictions([negative, "?", negative, positive], torch.zeros(4, 6)), batch)
        found.append({key: value.item() for key, value in metrics.compute().items()})
    added = found[1].keys() - found[0].keys()
    assert added == {f"{one}_{part}" for one in names for part in ("precision", "recall", "f1")}
    assert {key: found[1][key] for key in found[0]} == found[0]  # the standard ones are untouched
    assert beside.monitor == plain.monitor
    assert found[1]["negative_f1"] == pytest.approx(0.5)
    if "micro19" in names:
        assert found[1]["micro19_precision"] == pytest.approx(2 / 3)
        assert found[1]["micro19_recall"] == pytest.approx(2 / 4)


class TestInstruction:
    """Prompts for models that follow instructions."""

    def test_of_a_query(self):
        task = prepared(prompt="instruction", wording="names", markers="none")
        source = task.source(make())
        lines = source.text.split("\n")
        assert lines[2:5] == [
            "Query sentence: Bill lives in Hawaii.",
            "Head entity: Bill",
            "Tail entity: Hawaii",
        ]
        assert lines[5] == "Relation types: " + ", ".join(sorted(TACRED))
        parts = {name: source.text[slice(*span)] for name, span in source.spans.items()}
        assert (parts["head"], parts["tail"]) == ("Bill", "Hawaii")
        assert parts["question"] + "Bill lives in Hawaii." + parts["task"] == source.text

    def test_says_nothing_about_the_label(self):
        task = prepared(prompt="instruction", wording="names")
        assert task.source(make()) == task.source(make(label=None))

    def test_lists_the_words_that_are_to_be_written(self):
        """Whatever their order in the data set: one list, in every prompt, with every label."""
        texts = []
        for labels in (tuple(SEMEVAL2010), tuple(reversed(SEMEVAL2010))):
            task = RelationExtraction(
                wording="semeval2010", scorer="semeval2010", prompt="instruction", markers="tags"
            )
            task.prepare(labels)
            instance = make(label="Other")
            texts.append(task.source(instance).text)
            types = texts[-1].split("Relation types: ")[1].split("\n")[0].split(", ")
            assert types == sorted(task.option_target(instance, label) for label in labels)
        assert texts[0] == texts[1]

    def test_with_tags(self):
        task = prepared("semeval2010", prompt="instruction", wording="names", markers="tags")
        source = task.source(make(label="Other"))
        assert "Query sentence: <e1>Bill</e1> lives in <e2>Hawaii</e2>.\n" in source.text
        assert "Entity e1: Bill\nEntity e2: Hawaii\n" in source.text
        assert "links the entity e1 to the entity e2" in source.text

    @pytest.mark.parametrize("with_label", [True, False])
    def test_of_an_example(self, with_label):
        task = prepared(prompt="instruction", wording="names", markers="none")
        instance = make()
        shown = task.passage(Passage("p", instance.text, instance=instance), with_label=with_label)
        sentence = "Example sentence: Bill lives in Hawaii."
        label = "per:cities_of_residence"
        assert shown.text == sentence + f"\nRelation of the example: {label}" * with_label
        expected = {"head": "Bill", "tail": "Hawaii"} | ({"label": label} if with_label else {})
        assert {n: shown.text[slice(*span)] for n, span in shown.spans.items()} == expected

    def test_retrievers_read_no_instruction(self):
        task, plain = prepared(prompt="instruction"), prepared()
        assert task.query(make()) == plain.query(make())

    def test_before_prepare(self):
        with pytest.raises(RuntimeError, match="prepare"):
            RelationExtraction(prompt="instruction").source(make())

    def test_in_a_chat(self):
        """The example and the query are the user's turn, to the letter."""
        task = prepared(prompt="instruction", wording="names", markers="none")
        demonstration = Passage("p", "", instance=make(text="Here Bill saw Hawaii."))
        prompt = Prompt(task.source(make()), (task.passage(demonstration),))
        texts = [prompt.passages[0].text, prompt.query.text]
        plain = build_generator(GeneratorConfig(architecture="decoder-only"), texts)
        plain.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
        config = GeneratorConfig("tiny", "decoder-only", max_source_length=1000, chat_template=True)
        chat = DecoderOnlyGenerator(plain.model, plain.tokenizer, config)
        read = []
        chat.model.get_input_embeddings().register_forward_pre_hook(
            lambda module, inputs: read.append(inputs[0][0].tolist())
        )
        with torch.no_grad():
            chat.generate([prompt])
        whole = chat.tokenizer.decode(read[0])
        expected = "[" + "\n".join(texts) + "]"
        assert "".join(whole.split()) == "".join(expected.split())

    @pytest.mark.parametrize("architecture", ["encoder-decoder", "decoder-only"])
    def test_what_a_generator_reads(self, architecture):
        """The example first where the decoder reads on, behind the query in an encoder; if the
        prompt is too long the example goes first, then words of the sentence outside its mentions.
        """
        task = prepared(prompt="instruction", wording="names", markers="none")
        filler = "and so on and on " * 20
        instance = make(text=f"Bill lives in Hawaii {filler}.")
        demonstration = Passage("p", "", instance=make(text="Here Bill saw Hawaii."))
        prompt = Prompt(task.source(instance), (task.passage(demonstration, with_label=False),))
        _, whole, all_tokens = read_by_generator(architecture, prompt, 1000)
        truncated, cut, _ = read_by_generator(architecture, prompt, all_tokens - 60)
        example, query = whole.index("Here Bill saw"), whole.index("Query sentence")
        assert (example < query) == (architecture == "decoder-only")
        assert truncated == 2  # the example and the query
        assert "Here Bill saw" not in cut
        for part in ("Which of the relation types", "Bill lives in Hawaii", "per:title", "Answer"):
            assert part in cut
        assert 0 < cut.count("so on") < whole.count("so on")


def read_by_generator(architecture, prompt, limit):
    """Return how many texts were cut, what the model read, and how many tokens that was."""
    config = GeneratorConfig(architecture=architecture, max_source_length=limit)
    generator = build_generator(config, [prompt.query.text, prompt.passages[0].text])
    read = []
    generator.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0][0].tolist())
    )
    with torch.no_grad():
        generator.log_likelihood([prompt], ["per:title"])
    text = generator.tokenizer.decode(read[0], skip_special_tokens=True)
    return generator.truncated, text, len(read[0])


def test_tagged_texts_have_mentions_as_keywords_and_the_label():
    task, instance = prepared(target="clause"), make()
    passage = Passage("p", instance.text, instance=instance)
    label = task.target(instance)
    for tags, sentence in (
        ("none", "Bill lives in Hawaii."),
        ("untyped", "<Keyword> Bill </Keyword> lives in <Keyword> Hawaii </Keyword>."),
        ("typed", "<Keyword> person: Bill </Keyword> lives in <Keyword> city: Hawaii </Keyword>."),
    ):
        rendered = task.tagged_query(instance, tags)
        assert rendered.text == f"{sentence} {label}"
        assert rendered == task.tagged_key(passage, tags)
        shown = {name: rendered.text[slice(*span)] for name, span in rendered.spans.items()}
        assert shown["label"] == label
        assert "Bill" in shown["head"]
        assert "Hawaii" in shown["tail"]
        assert ("<Keyword>" in shown["head"]) == (tags != "none")


def test_tagged_mentions_that_overlap_are_one_keyword():
    instance = replace(make(), head=Span(0, 10), tail=Span(5, 13))
    rendered = prepared().tagged_query(instance, "untyped")
    assert rendered.text.startswith("<Keyword> Bill lives in </Keyword> Hawaii. ")
    assert rendered.spans["head"] == rendered.spans["tail"] == (0, 34)


def test_tagged_texts_without_label_or_mentions():
    task = prepared()
    assert task.tagged_key(Passage("p", "plain"), "typed").text == "plain"
    for tags in ("none", "untyped"):
        with pytest.raises(ValueError, match="'i1' has no label"):
            task.tagged_query(make(label=None), tags)
    with pytest.raises(ValueError, match="lacks the span"):
        task.tagged_query(replace(make(), tail=None), "untyped")

"""InstructUIE's folders, invented: the four tasks, places that are wrong, damaged files."""

from __future__ import annotations

import copy
import json
import logging

import pytest

from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.instruct_uie import InstructUie
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import InformationExtraction, linearize
from lightning_rag.types import Mention

SENTENCE = "Ann Lee left Lima for Rome ."
ANN = {"name": "Ann Lee", "type": "person", "pos": [0, 7]}
LIMA = {"name": "Lima", "type": "place", "pos": [13, 17]}
ROME = {"name": "Rome", "role": "goal", "pos": [22, 26]}
LEFT = {"trigger": "left", "type": "going", "pos": [8, 12]}
RECORDS = {
    "NER": {"sentence": SENTENCE, "entities": [LIMA, ANN]},
    "RE": {"sentence": SENTENCE, "relations": [{"type": "leaves", "head": ANN, "tail": LIMA}]},
    "EET": {"sentence": SENTENCE, "events": [LEFT | {"arguments": []}]},
    "EEA": {"sentence": SENTENCE, "events": [LEFT | {"arguments": [ROME]}]},
}
LABELS = {
    "NER": ["place", "person"],
    "RE": ["leaves", "NA", "founder (of)"],
    "EET": {"going": ["goal", "source"], "NA": []},
    "EEA": {"going": ["goal", "source"], "being": []},
}
LISTS = {"NER": "entities", "RE": "relations", "EET": "events", "EEA": "events"}
ANSWERS = {
    "NER": "place: Lima; person: Ann Lee",
    "RE": "leaves: Ann Lee, Lima",
    "EET": "going: left",
    "EEA": "goal: Rome",
}
NOTHING = {
    "NER": {"sentence": "Nothing .", "entities": []},
    "RE": {"sentence": "Nothing .", "relations": []},
    "EET": {"sentence": "Nothing .", "events": []},
    "EEA": {"sentence": "Nothing .", "events": [LEFT | {"pos": [], "arguments": []}]},
}


@pytest.fixture
def write(tmp_path):
    def of(task, records=None, labels=None, name="toy"):
        folder = tmp_path / "IE" / task / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "labels.json").write_text(json.dumps(LABELS[task] if labels is None else labels))
        train = [RECORDS[task]] if records is None else records
        for file, content in (
            ("train", train),
            ("dev", [NOTHING[task]]),
            ("test", [NOTHING[task], NOTHING[task] | {"sentence": "Nothing at all ."}]),
        ):
            (folder / f"{file}.json").write_text(json.dumps(content))
        return tmp_path

    return of


def reader(task, **arguments):
    return InstructUie("IE", (f"{task}/toy",), **arguments)


@pytest.mark.parametrize("task", RECORDS)
def test_one_data_set_of_each_task(write, task):
    splits = reader(task).read(write(task), seed=0)
    (instance,) = splits.train
    assert (instance.id, instance.task) == (f"{task}_toy/train/0", f"{task}_toy")
    assert instance.text == SENTENCE
    assert instance.answers == (linearize(instance.extraction),) == (ANSWERS[task],)
    assert [i.id for i in splits.test] == [f"{task}_toy/test/0", f"{task}_toy/test/1"]
    assert [i.answers for i in splits.validation] == [("None",)]
    assert splits.labels == ()


def test_schemas_and_places(write):
    found = {task: reader(task).read(write(task), seed=0).train[0].extraction for task in RECORDS}
    assert {task: e.schema for task, e in found.items()} == {
        "NER": ("place", "person"),
        "RE": ("leaves", "founder (of)"),
        "EET": ("going",),
        "EEA": ("goal", "source"),
    }
    assert {task: e.kind for task, e in found.items()} == {
        "NER": "entities",
        "RE": "relations",
        "EET": "events",
        "EEA": "arguments",
    }
    assert [f.mentions for f in found["NER"].facts] == [
        (Mention("Lima", 13, 17),),
        (Mention("Ann Lee", 0, 7),),
    ]
    (relation,) = found["RE"].facts
    assert relation.mentions == (
        Mention("Ann Lee", 0, 7, "person"),
        Mention("Lima", 13, 17, "place"),
    )
    assert found["EEA"].trigger == found["EET"].facts[0]
    assert found["EET"].facts[0].mentions == (Mention("left", 8, 12),)
    assert found["EET"].trigger is None


def test_all_data_sets_in_the_order_of_their_names(write, tmp_path):
    for task, name in (("RE", "b"), ("NER", "b"), ("NER", "a"), ("EET", "c")):
        write(task, name=name)
    (tmp_path / "IE" / "NER" / "notes").mkdir()
    (tmp_path / "IE" / "other" / "x").mkdir(parents=True)
    (tmp_path / "IE" / "other" / "x" / "labels.json").write_text("[]")
    splits = InstructUie("IE").read(tmp_path, seed=0)
    assert [i.task for i in splits.train] == ["EET_c", "NER_a", "NER_b", "RE_b"]
    chosen = InstructUie("IE", ("RE/b", "NER/a")).read(tmp_path, seed=0)
    assert [i.task for i in chosen.train] == ["RE_b", "NER_a"]


def test_an_event_an_instance(write):
    two = [LEFT | {"arguments": [ROME]}, LEFT | {"trigger": "Rome", "pos": [22, 26]}]
    two[1]["arguments"] = []
    records = [{"sentence": SENTENCE, "events": events} for events in (two, [], two[:1])]
    train = reader("EEA").read(write("EEA", records), seed=0).train
    assert [i.id for i in train] == [f"EEA_toy/train/{number}" for number in range(3)]
    assert [i.answers[0] for i in train] == ["goal: Rome", "None", "goal: Rome"]
    assert [i.extraction.trigger.mentions[0].text for i in train] == ["left", "Rome", "left"]


def test_an_event_without_roles_asks_nothing(write):
    events = [LEFT | {"type": "being", "arguments": []}, LEFT | {"arguments": [ROME]}]
    root = write("EEA", [{"sentence": SENTENCE, "events": events}])
    (instance,) = reader("EEA").read(root, seed=0).train
    assert instance.answers == ("goal: Rome",)


def test_all_tasks_as_the_data_of_a_run(write, tmp_path):
    """The task accepts every instance, and queries get demonstrations of their own task."""
    for task in RECORDS:
        more = [{**RECORDS[task], "sentence": f"{SENTENCE} {number}"} for number in range(3)]
        write(task, more)
    data = RagDataModule(
        reader=InstructUie("IE"),
        task=InformationExtraction(),
        first_stage=BM25(),
        root=str(tmp_path),
        num_candidates=2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    (batch,) = data.test_dataloader()
    assert len(batch.instances) == 8
    for instance, candidates in zip(batch.instances, batch.candidate_ids.tolist(), strict=True):
        tasks = {data.store[row].instance.task for row in candidates}
        assert tasks == {instance.task}


def test_what_says_that_there_is_no_fact_is_left_out(write):
    empty = [ANN | {"type": ""}, ANN | {"type": "NA"}, ANN | {"name": " "}, ANN | {"name": ""}]
    records = [{"sentence": SENTENCE, "entities": [*empty, ANN]}]
    (instance,) = reader("NER").read(write("NER", records), seed=0).train
    assert instance.answers == ("person: Ann Lee",)
    relation = {"type": "NA", "head": ANN, "tail": LIMA}
    records = [{"sentence": SENTENCE, "relations": [relation]}]
    (instance,) = reader("RE").read(write("RE", records), seed=0).train
    assert instance.answers == ("None",)


WRONG = [[0, 3], [13, 99], [-28, -21], [7, 0], [1, 8], [0], [0, 3, 7]]


@pytest.mark.parametrize("pos", WRONG)
def test_a_wrong_place_is_unknown_or_an_error(write, pos, caplog):
    caplog.set_level(logging.WARNING)
    root = write("NER", [{"sentence": SENTENCE, "entities": [LIMA, ANN | {"pos": pos}]}])
    facts = reader("NER").read(root, seed=0).train[0].extraction.facts
    assert [f.mentions[0] for f in facts] == [Mention("Lima", 13, 17), Mention("Ann Lee")]
    assert "train.json: of 2 mentions 1 have a pos that does not hold their name" in caplog.text
    message = r"train\.json: record 1: 'entities' 2: pos .* does not hold 'Ann Lee' in a sentence"
    with pytest.raises(DataError, match=message):
        reader("NER", strict=True).read(root, seed=0)


@pytest.mark.parametrize("pos", [[], None, ...])
def test_no_place_is_unknown_and_no_error(write, pos, caplog):
    entity = ANN | {"pos": pos} if pos is not ... else {"name": "Ann Lee", "type": "person"}
    root = write("NER", [{"sentence": SENTENCE, "entities": [entity]}])
    (fact,) = reader("NER", strict=True).read(root, seed=0).train[0].extraction.facts
    assert fact.mentions == (Mention("Ann Lee"),)
    assert not caplog.records


def test_spaces_around_a_name(write):
    records = [{"sentence": SENTENCE, "entities": [ANN | {"name": "Ann Lee ", "pos": [0, 8]}]}]
    (fact,) = (
        reader("NER", strict=True).read(write("NER", records), seed=0).train[0].extraction.facts
    )
    assert fact.mentions == (Mention("Ann Lee", 0, 7),)


def test_a_training_sentence_of_another_set_s_test_split_goes(write):
    write("NER", [RECORDS["NER"], RECORDS["NER"] | {"sentence": "nothing  AT all ."}])
    root = write("RE", [RECORDS["RE"] | {"sentence": "Nothing ."}, RECORDS["RE"]])
    splits = InstructUie("IE").read(root, seed=0)
    assert [i.id for i in splits.train] == ["NER_toy/train/0", "RE_toy/train/1"]


def changed(task, path, value):
    record = copy.deepcopy(RECORDS[task])
    *way, last = path
    place = record
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(
    ("task", "path", "value", "message"),
    [
        ("NER", ["sentence"], " ", r"record 1: field 'sentence' is a string, ' '"),
        ("NER", ["sentence"], ..., r"record 1: missing field 'sentence'"),
        ("NER", ["entities"], ..., r"record 1: missing field 'entities'"),
        ("NER", ["entities"], [3], r"record 1: field 'entities' is a list, \[3\]"),
        ("NER", ["entities", 0, "name"], ..., r"record 1: 'entities' 1: missing field 'name'"),
        ("NER", ["entities", 1, "type"], ..., r"record 1: 'entities' 2: missing field 'type'"),
        ("NER", ["entities", 1, "type"], "Person", r"2: unknown label 'Person'; legal: place, per"),
        ("NER", ["entities", 1, "pos"], "0-7", r"2: field 'pos' is a string, '0-7'; legal: \[st"),
        ("NER", ["entities", 1, "pos"], [0, "7"], r"2: field 'pos' is a list, \[0, '7'\]"),
        ("NER", ["entities", 1, "pos"], [False, 7], r"2: field 'pos' is a list, \[False, 7\]"),
        ("RE", ["relations", 0, "type"], "goes", r"'relations' 1: unknown label 'goes'; legal: le"),
        ("RE", ["relations", 0, "tail"], "Lima", r"'relations' 1: field 'tail' is a string"),
        ("RE", ["relations", 0, "head", "name"], 3, r"in 'head': field 'name' is an integer, 3"),
        ("EET", ["events", 0, "type"], "goal", r"'events' 1: unknown label 'goal'; legal: going"),
        ("EET", ["events", 0, "trigger"], ..., r"'events' 1: missing field 'trigger'"),
        ("EEA", ["events", 0, "type"], "NA", r"'events' 1: no event type or trigger; legal"),
        ("EEA", ["events", 0, "arguments"], ..., r"'events' 1: missing field 'arguments'"),
        (
            "EEA",
            ["events", 0, "arguments", 0, "role"],
            "time",
            r"'events' 1: 'arguments' 1: unknown label 'time'; legal: goal, source",
        ),
    ],
)
def test_damaged_records(write, task, path, value, message):
    root = write(task, [changed(task, path, value)])
    with pytest.raises(DataError, match=rf"{task}/toy/train\.json: .*{message}"):
        reader(task).read(root, seed=0)


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("NER", {"a": []}, r"labels\.json: field 'labels' is an object"),
        ("RE", ["NA", ""], r"labels\.json: labels \['NA', ''\]; legal: at least one that is not"),
        ("NER", [], r"labels\.json: field 'labels' is a list, \[\]"),
        ("NER", ["place", "person", "place"], r"labels\.json: label 'place' stands there twice"),
        ("EET", ["going"], r"labels\.json: legal: a JSON object of event type: list of roles"),
        ("EEA", {"going": "goal"}, r"labels\.json: field 'going' is a string"),
        ("EEA", {"going": ["a", "a"]}, r"labels\.json: going: label 'a' stands there twice"),
        ("NER", ["person"], r"train\.json: record 1: 'entities' 1: unknown label 'place'"),
    ],
)
def test_damaged_labels(write, task, labels, message):
    root = write(task, labels=labels)
    with pytest.raises(DataError, match=message):
        reader(task).read(root, seed=0)


def test_files_that_are_missing_or_no_json(write, tmp_path):
    root = write("NER")
    (root / "IE/NER/toy/dev.json").unlink()
    with pytest.raises(DataError, match=r"dev\.json: no such file"):
        reader("NER").read(root, seed=0)
    (root / "IE/NER/toy/train.json").write_text('[\n{"sentence": }]')
    with pytest.raises(DataError, match=r"train\.json:2: no JSON"):
        reader("NER").read(root, seed=0)
    with pytest.raises(DataError, match=r"none: no data sets; legal: a folder with \{NER,RE,EET"):
        InstructUie("none").read(tmp_path, seed=0)


@pytest.mark.parametrize(
    "datasets", [(), ("NER/a", "NER/a"), ("NER",), ("XYZ/a",), ("NER/a/b",), ("NER/",)]
)
def test_arguments(datasets):
    with pytest.raises(UserError, match=r"datasets (is|has) .*; legal: "):
        InstructUie("IE", datasets)

"""GENEVA as it lies among the data, and damaged files."""

from __future__ import annotations

import copy
import gzip
import json
from collections import Counter

import pytest

from lightning_rag.data.readers.extraction import spaced
from lightning_rag.data.readers.geneva import FILES, Geneva, align
from lightning_rag.data.store import PassageStore, check_no_leak
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import InformationExtraction, linearize

# sentences, events, arguments and event types of each split, as the data's notes count them
COUNTS = {
    "train": (1414, 3028, 4874, 114),
    "validation": (584, 1116, 1830, 112),
    "test": (685, 1418, 2320, 114),
}


@pytest.fixture(scope="module")
def splits(data_root):
    return Geneva().read(data_root, seed=0)


@pytest.fixture(scope="module")
def raw(data_root):
    found = {}
    for split, file in FILES.items():
        with gzip.open(data_root / "geneva" / file, "rt", encoding="utf-8") as lines:
            found[split] = [json.loads(line) for line in lines]
    return found


def parts(splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def of_task(instances, task):
    return [i for i in instances if i.task == task]


def test_sizes(splits):
    for split, (sentences, events, arguments, types) in COUNTS.items():
        instances = parts(splits)[split]
        detection, extraction = (of_task(instances, t) for t in ("EET_geneva", "EEA_geneva"))
        assert len(detection) == sentences
        assert len(extraction) == sum(len(i.extraction.facts) for i in detection) == events
        assert sum(len(i.extraction.facts) for i in extraction) == arguments
        assert len({f.type for i in detection for f in i.extraction.facts}) == types
        assert len(instances) == sentences + events == len({i.id for i in instances})
        assert all(i.answers == (linearize(i.extraction),) for i in instances)
    for part in (splits.train, splits.validation, splits.test):
        InformationExtraction().check_answers(part)
    held_out = {"validation": splits.validation, "test": splits.test}
    assert check_no_leak(PassageStore.from_instances(splits.train), held_out) == 0
    schemas = {i.extraction.schema for i in splits.train if i.task == "EET_geneva"}
    assert [len(schema) for schema in schemas] == [115]


def test_texts_are_the_annotated_ones(splits, raw):
    """Offsets by tokens agree with the annotators' texts, but for three cases; and every fact."""
    others = 0
    for split, instances in parts(splits).items():
        detection, extraction = (of_task(instances, t) for t in ("EET_geneva", "EEA_geneva"))
        events = iter(extraction)
        for instance, record in zip(detection, raw[split], strict=True):
            assert instance.text == record["sentence"]
            assert [f.type for f in instance.extraction.facts] == [
                spaced(event["event_type"]) for event in record["event_mentions"]
            ]
            for fact, event in zip(
                instance.extraction.facts, record["event_mentions"], strict=True
            ):
                (mention,) = fact.mentions
                others += mention.text != event["trigger"]["text"]
                asked = next(events)
                assert asked.text == instance.text
                assert asked.extraction.trigger == fact
                pairs = zip(asked.extraction.facts, event["arguments"], strict=True)
                for argument, written in pairs:
                    others += argument.mentions[0].text != written["text"]
                    assert argument.type == spaced(written["role"])
        for instance in instances:
            trigger = instance.extraction.trigger
            for fact in (*instance.extraction.facts, *([trigger] if trigger else [])):
                (mention,) = fact.mentions
                assert mention.text == instance.text[mention.start : mention.end]
                assert mention.text == mention.text.strip() != ""
            assert {f.type for f in instance.extraction.facts} <= set(instance.extraction.schema)
    assert others == 3


def test_one_kind_and_few_types(splits, data_root):
    arguments = Geneva(kinds=("arguments",)).read(data_root, seed=0)
    assert arguments.test == tuple(of_task(splits.test, "EEA_geneva"))
    types = ("Statement", "Arriving", "Theft")
    few = Geneva(event_types=types).read(data_root, seed=0)
    detection, extraction = (of_task(few.test, t) for t in ("EET_geneva", "EEA_geneva"))
    assert {i.extraction.schema for i in detection} == {("statement", "arriving", "theft")}
    whole = of_task(splits.test, "EET_geneva")
    for instance, complete in zip(detection, whole, strict=True):
        wanted = {"statement", "arriving", "theft"}
        facts = tuple(f for f in complete.extraction.facts if f.type in wanted)
        assert instance.extraction.facts == facts
    assert any(i.answers == ("None",) for i in detection)
    kinds = Counter(i.extraction.trigger.type for i in extraction)
    assert set(kinds) == {"statement", "arriving", "theft"}
    assert sum(kinds.values()) == sum(len(i.extraction.facts) for i in detection)


def test_roles_of_an_event_are_those_of_the_ontology(splits, data_root):
    ontology = json.loads((data_root / "geneva" / "event_ontology.json").read_text("utf-8"))
    roles = {
        spaced(name): [spaced(role) for role in e["arguments"]] for name, e in ontology.items()
    }
    for instance in of_task(splits.validation, "EEA_geneva"):
        event = instance.extraction.trigger.type
        assert list(instance.extraction.schema) == roles[event]


@pytest.mark.parametrize(
    ("tokens", "text", "spans"),
    [
        (["a", "b"], "a b", [(0, 1), (2, 3)]),
        (["`", "`", "a"], " `` a\n", [(1, 2), (2, 3), (4, 5)]),
        (["a"], "a b", None),
        (["a", "b"], "a", None),
        (["a", ""], "a", None),
        (["a b"], "a  b", None),
        ([], " ", []),
    ],
)
def test_align(tokens, text, spans):
    assert align(tokens, text) == spans


ONTOLOGY = {
    "Arriving": {"arguments": {"Goal": {}, "Theme_of": {}}},
    "GetReady": {"arguments": {"Activity": {}}},
}
RECORD = {
    "wnd_id": "w",
    "sentence": "``Ann'' came to $9 Lima .",
    "tokens": ["`", "`", "Ann", "'", "'", "came", "to", "$", "9", "Lima", "."],
    "entity_mentions": [
        {"id": "e1", "start": 2, "end": 3, "text": "Ann"},
        {"id": "e2", "start": 7, "end": 10, "text": "$9 Lima"},
    ],
    "event_mentions": [
        {
            "event_type": "Arriving",
            "trigger": {"start": 5, "end": 6, "text": "came"},
            "arguments": [
                {"entity_id": "e2", "role": "Goal"},
                {"entity_id": "e1", "role": "Theme_of"},
            ],
        }
    ],
}
EMPTY = {"entity_mentions": [], "event_mentions": [], "tokens": ["x", "y"], "sentence": "x y"}


@pytest.fixture
def read(tmp_path):
    def of(record=RECORD, ontology=ONTOLOGY, **arguments):
        folder = tmp_path / "geneva"
        folder.mkdir(exist_ok=True)
        (folder / "event_ontology.json").write_text(json.dumps(ontology))
        for split, content in (
            ("train", record),
            ("validation", EMPTY | {"wnd_id": "v"}),
            ("test", EMPTY | {"wnd_id": "t", "sentence": "x  y"}),
        ):
            with gzip.open(folder / FILES[split], "wt", encoding="utf-8") as file:
                file.write(json.dumps(content) + "\n")
        return Geneva(**arguments).read(tmp_path, seed=0)

    return of


def test_small_file(read):
    splits = read()
    detection, extraction = splits.train
    assert (detection.id, extraction.id) == ("EET_geneva/train/0", "EEA_geneva/train/0")
    assert detection.answers == ("arriving: came",)
    assert extraction.answers == ("goal: $9 Lima; theme of: Ann",)
    assert extraction.extraction.schema == ("goal", "theme of")
    assert splits.test[0].answers == ("None",)
    assert splits.test[0].extraction.schema == ("arriving",)


def test_a_training_sentence_of_the_test_split_goes(read):
    same = EMPTY | {"wnd_id": "w", "sentence": "X y", "tokens": ["X", "y"]}
    assert read(same, event_types=("Arriving",)).train == ()


def broken(change):
    record = copy.deepcopy(RECORD)
    change(record)
    return record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("sentence"), r"gz:1: missing field 'sentence'"),
        (lambda r: r.update(sentence="``Ann went"), r"gz:1: 'tokens' are not the words of"),
        (lambda r: r.update(wnd_id="v"), r"val.*:1: id 'v' is already taken at .*train.*:1"),
        (
            lambda r: r["entity_mentions"][1].update(end=12),
            r"gz:1: 'entity_mentions' 2: tokens \[7, 12\) in a sentence of 11; legal: 0 <= start",
        ),
        (lambda r: r["entity_mentions"][0].update(start=3), r"mentions' 1: tokens \[3, 3\)"),
        (lambda r: r["entity_mentions"][0].update(start="2"), r"field 'start' is a string, '2'"),
        (
            lambda r: r["event_mentions"][0]["trigger"].update(start=-1),
            r"gz:1: 'event_mentions' 1: in 'trigger': tokens \[-1, 6\)",
        ),
        (
            lambda r: r["event_mentions"][0].update(event_type="Going"),
            r"gz:1: 'event_mentions' 1: unknown label 'Going'; legal: Arriving, GetReady",
        ),
        (
            lambda r: r["event_mentions"][0]["arguments"][1].update(role="Activity"),
            r"'event_mentions' 1: 'arguments' 2: unknown label 'Activity'; legal: Goal, Theme_of",
        ),
        (
            lambda r: r["event_mentions"][0]["arguments"][0].update(entity_id="e3"),
            r"'arguments' 1: entity_id 'e3' is unknown; legal: an id of 'entity_mentions'",
        ),
    ],
)
def test_damaged_records(read, change, message):
    with pytest.raises(DataError, match=message):
        read(broken(change))


def test_damaged_ontology(read):
    with pytest.raises(DataError, match=r"event_ontology\.json: legal: a JSON object"):
        read(ontology=[])
    with pytest.raises(DataError, match=r"in 'Arriving': missing field 'arguments'"):
        read(ontology={"Arriving": {}})
    with pytest.raises(UserError, match=r"roles of 'Arriving': the words of label 'A_b' are 'a b'"):
        read(ontology={"Arriving": {"arguments": {"A_b": {}, "aB": {}}}})
    twins = {name: {"arguments": {}} for name in ("GetReady", "Get_ready")}
    with pytest.raises(UserError, match=r"event types: the words of label 'GetReady'"):
        read(ontology={**ONTOLOGY, **twins}, event_types=tuple(twins))


def test_arguments(read):
    with pytest.raises(UserError, match=r"kinds is \[\]; legal: one or both of events, arguments"):
        Geneva(kinds=())
    with pytest.raises(UserError, match=r"kinds is \['roles'\]"):
        Geneva(kinds=("roles",))
    with pytest.raises(UserError, match=r"event_types is \['A', 'A'\]; legal: at least one type"):
        Geneva(event_types=("A", "A"))
    with pytest.raises(DataError, match="event_types: unknown label 'Going'; legal: Arriving"):
        read(event_types=("Going",))

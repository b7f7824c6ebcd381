from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from lightning_rag.data.store import PassageStore, check_no_leak, exclusions
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Extraction, Fact, Instance, Mention, Passage, Span


def instance(name: str, text: str, head=(0, 1), tail=(2, 3), label: str = "x") -> Instance:
    return Instance(id=name, text=text, answers=(label,), head=Span(*head), tail=Span(*tail))


TRAIN = [
    instance("train-1", "The cat sat."),
    instance("train-2", "A dog ran."),
    instance("train-3", "the  CAT sat. "),
    instance("train-4", "A bird flew."),
]


def test_rows_and_records():
    store = PassageStore.from_instances(TRAIN)
    assert len(store) == 4
    assert [passage.id for passage in store] == [i.id for i in TRAIN]
    assert store[2].instance is TRAIN[2]
    assert store[2].text == TRAIN[2].text
    assert store.row("train-3") == 2
    assert "train-3" in store
    assert "train-9" not in store
    with pytest.raises(KeyError):
        store.row("train-9")


def test_duplicate_ids_are_named():
    passages = [Passage(id=name, text="t") for name in ("a", "b", "a", "c", "b", "a")]
    with pytest.raises(DataError, match=r"more than once: a, b$"):
        PassageStore(passages)
    many = [Passage(id=str(i // 2), text="t") for i in range(30)]
    with pytest.raises(DataError, match="0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more"):
        PassageStore(many)


def test_an_empty_store():
    with pytest.raises(DataError, match="empty"):
        PassageStore([])


def test_fingerprint_depends_on_everything_that_is_read():
    base = Passage("a", "text", "title")
    demonstration = Passage("a", "text", "title", instance("a", "text"))
    stores = [
        [base],
        [Passage("b", "text", "title")],
        [Passage("a", "text2", "title")],
        [Passage("a", "text", "")],
        [Passage("a", "texttitle", "")],
        [demonstration],
        [Passage("a", "text", "title", instance("a", "text", label="y"))],
        [Passage("a", "text", "title", instance("a", "text", head=(1, 2)))],
        [Passage("a", "text", "title", Instance(id="a", text="text", answers=("x",)))],
        [base, Passage("b", "text")],
        [Passage("b", "text"), base],
    ]
    assert len({PassageStore(passages).fingerprint for passages in stores}) == len(stores)
    assert PassageStore([base]).fingerprint == PassageStore([base]).fingerprint


def asked(trigger=None, kind="events", schema=("x", "y"), **fields) -> Instance:
    """Return an instance of event extraction whose one fact is the mention `t`."""
    facts = (Fact("x", (Mention("t", 0, 1, "T"),)),)
    fields = {"text": "text", "answers": ("x: t",), **fields}
    return Instance(id="a", extraction=Extraction(kind, schema, facts, trigger), **fields)


def test_fingerprint_depends_on_what_is_extracted():
    base = asked()
    assert base.extraction is not None
    trigger = Fact("e", (Mention("t"),))
    facts = [
        (),
        (Fact("y", base.extraction.facts[0].mentions),),
        (Fact("x", (Mention("t", 0, 1),)),),
        (Fact("x", (Mention("t", None, None, "T"),)),),
        (Fact("x", (Mention("t", 0, 1, "T"), Mention("t", 0, 1, "T"))),),
        (*base.extraction.facts, trigger),
    ]
    instances = [
        base,
        Instance(id="a", text="text", answers=("x: t",)),
        asked(task="NER_x"),
        asked(held_out=True),
        asked(task="NER_x", held_out=True),
        asked(trigger),
        asked(kind="entities"),
        asked(schema=("x",)),
        asked(schema=("x, y",)),
        *(replace(base, extraction=replace(base.extraction, facts=f)) for f in facts),
    ]
    found = {PassageStore.from_instances([instance]).fingerprint for instance in instances}
    assert len(found) == len(instances)


def test_fingerprints_of_other_data_stay_as_they_were():
    # computed before instances had tasks: caches of earlier runs stay valid
    store = PassageStore.from_instances(TRAIN)
    assert store.fingerprint == "4214bf9eb1cc9a643028d471b6333cadfdadc90c7b37a906d60a9ab363607e07"


def test_records_of_other_tasks_and_triggers_are_no_leak():
    text = "rebels hit and hit"

    def event(name, word, start, task):
        trigger = Fact("Attack", (Mention(word, start, None if start is None else start + 3),))
        return replace(asked(trigger, "arguments", text=text, task=task), id=name)

    store = PassageStore.from_instances([event("i1", "hit", 7, "EEA_x")])
    others = [
        event("i2", "hit", 15, "EEA_x"),
        event("i3", "hit", 7, "EEA_y"),
        event("i4", "hit", None, "EEA_x"),
        replace(asked(text=text, task="EEA_x"), id="i5"),
    ]
    assert check_no_leak(store, {"test": others}) == len(others)
    with pytest.raises(UserError, match=re.escape("i6 (= i1)")):
        check_no_leak(store, {"test": [event("i6", "hit", 7, "EEA_x")]})


def test_a_leak_by_id_stops_and_names_the_ids():
    store = PassageStore.from_instances(TRAIN)
    held_out = {"validation": [], "test": [instance("train-2", "Something else.")]}
    with pytest.raises(UserError, match=r"1 ids of the test split .* train-2;"):
        check_no_leak(store, held_out)
    many = [instance(f"i{n}", f"text {n}") for n in range(15)]
    with pytest.raises(UserError, match=r"15 ids of the validation split .*i9 and 5 more"):
        check_no_leak(PassageStore.from_instances(many), {"validation": many})


@pytest.mark.parametrize("label", ["x", "y"])
@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [("A dog ran.", (0, 1), (2, 3)), ("a  dog ran.", (0, 1), (3, 4))],
)
def test_a_leak_by_record_stops_and_names_both_ids(text, head, tail, label):
    store = PassageStore.from_instances(TRAIN)
    held_out = {"test": [instance("test-1", text, head, tail, label)]}
    with pytest.raises(UserError, match=re.escape("test-1 (= train-2)")):
        check_no_leak(store, held_out)


def test_the_same_text_with_other_mentions_is_counted():
    store = PassageStore.from_instances(TRAIN)
    held_out = {
        "validation": [instance("v1", "A dog ran.", (2, 5), (6, 9))],
        "test": [instance("t1", "A DOG ran.", (2, 3), (0, 1)), instance("t2", "A new one.")],
    }
    assert check_no_leak(store, held_out) == 2


def test_passages_without_a_label_cannot_leak():
    store = PassageStore([Passage("1", "Who wrote it?"), Passage("2", "b")])
    assert check_no_leak(store, {"test": [Instance(id="1", text="Who wrote it?")]}) == 0


def test_questions_as_demonstrations():
    store = PassageStore.from_instances([Instance(id="a", text="Who wrote it?", answers=("me",))])
    with pytest.raises(UserError, match=re.escape("b (= a)")):
        check_no_leak(store, {"test": [Instance(id="b", text="who wrote it?")]})


def test_exclusions_equal_brute_force():
    store = PassageStore.from_instances(TRAIN)
    found = exclusions([*TRAIN, instance("new", "a bird\tflew.")], store)
    assert [rows.tolist() for rows in found] == [[0, 2], [1], [0, 2], [3], [3]]
    assert all(rows.dtype == np.int64 for rows in found)


def test_exclusions_of_a_text_collection_go_by_text_only():
    store = PassageStore([Passage("q1", "An unrelated passage."), Passage("p2", "WHO wrote it?")])
    found = exclusions(
        [Instance(id="q1", text="Who wrote it?"), Instance(id="q2", text="c")], store
    )
    assert [rows.tolist() for rows in found] == [[1], []]


def test_semeval_2010_shares_16_plain_sentences_between_its_splits(data_root):
    """The figure stands in the data set's description; no record may count as a leak.

    One more is the same up to case and white space.
    """
    splits = {}
    for split, file in (
        ("train", "SemEval2010_task8_training/TRAIN_FILE.TXT"),
        ("test", "SemEval2010_task8_testing_keys/TEST_FILE_FULL.TXT"),
    ):
        text = (data_root / "semeval2010_task8" / file).read_text(encoding="utf-8")
        found = re.findall(r'^(\d+)\t"(.*)"\s*\n(\S+)', text, flags=re.MULTILINE)
        splits[split] = [tagged(f"{split}-{n}", sentence, label) for n, sentence, label in found]
    assert [len(instances) for instances in splits.values()] == [8000, 2717]
    store = PassageStore.from_instances(splits["train"])
    assert check_no_leak(store, {"test": splits["test"]}) == 17
    texts = {i.text for i in splits["train"]}
    assert sum(i.text in texts for i in splits["test"]) == 16


def tagged(name: str, sentence: str, label: str) -> Instance:
    pieces = re.split(r"</?e[12]>", sentence)
    starts = np.cumsum([0, *map(len, pieces)])
    return Instance(
        id=name,
        text="".join(pieces),
        answers=(label,),
        head=Span(int(starts[1]), int(starts[2])),
        tail=Span(int(starts[3]), int(starts[4])),
    )

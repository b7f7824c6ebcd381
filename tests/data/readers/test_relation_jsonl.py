"""The project's own format for relation extraction."""

from __future__ import annotations

import json

import pytest

from lightning_rag.data.readers.relation_jsonl import RelationJsonl
from lightning_rag.errors import DataError, UserError
from lightning_rag.types import Instance, Span


def record(identity, label="born_in", **changes):
    return {
        "id": identity,
        "text": f"Ada {identity} was born in Zürich.",
        "head": {"start": 0, "end": 3, "type": "PERSON"},
        "tail": {"start": 17 + len(str(identity)), "end": 23 + len(str(identity))},
        "label": label,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def to_file(name, records):
        lines = [json.dumps(r, ensure_ascii=False) if isinstance(r, dict) else r for r in records]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path

    return to_file


def test_three_files(write):
    write("a.jsonl", [record("x"), record(7, "lives_in", group="doc")])
    write("dev.jsonl", [record("v", note="ignored")])
    root = write("c.jsonl", [record("t", "works_in")])
    splits = RelationJsonl("a.jsonl", "dev.jsonl", "c.jsonl").read(root, seed=0)
    assert splits.train[0] == Instance(
        id="x",
        text="Ada x was born in Zürich.",
        answers=("born_in",),
        head=Span(0, 3, "PERSON"),
        tail=Span(18, 24, ""),
        group="ada x was born in zürich.",
    )
    assert (splits.train[1].id, splits.train[1].group) == ("7", "doc")
    assert splits.train[0].text[18:24] == "Zürich"
    assert [i.id for i in splits.validation + splits.test] == ["v", "t"]
    assert splits.labels == ("born_in", "lives_in", "works_in")


def test_validation_is_cut_from_train_by_group(write):
    root = write("a.jsonl", [record(i, group=f"g{i // 5}") for i in range(100)])
    splits = RelationJsonl("a.jsonl", validation_fraction=0.2).read(root, seed=0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (80, 20, 0)
    assert not {i.group for i in splits.train} & {i.group for i in splits.validation}


def test_given_labels_keep_their_order(write):
    root = write("a.jsonl", [record(1), record(2)])
    splits = RelationJsonl("a.jsonl", labels=("none", "born_in", "b")).read(root, seed=0)
    assert splits.labels == ("none", "born_in", "b")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"a\.jsonl:2: '{' is no JSON"),
        (record(2, head=None), r"a\.jsonl:2: field 'head' is null, None; legal: an object"),
        (record(2, text=""), r"a\.jsonl:2: field 'text' is a string, ''; legal: a string that is"),
        (record(2, text=["a"]), r"a\.jsonl:2: field 'text' is a list"),
        (
            record(2, head={"end": 1}),
            r"a\.jsonl:2: in 'head': missing field 'start'; legal: an int",
        ),
        (
            record(2, head={"start": 0, "end": 99}),
            r"a\.jsonl:2: head is \[0, 99\) in a sentence of",
        ),
        (record(2, tail={"start": 4, "end": 4}), r"a\.jsonl:2: tail is \[4, 4\) in a sentence of"),
        (record(2, tail={"start": 3, "end": 4}), r"a\.jsonl:2: tail \[3, 4\) is only white space"),
        (
            record(2, tail={"start": 0.0, "end": 4}),
            r"a\.jsonl:2: in 'tail': field 'start' is a num",
        ),
        (record(2, "died_in"), r"a\.jsonl:2: unknown label 'died_in'; legal: born_in"),
        (record(1), r"a\.jsonl:2: id '1' is already taken at .*a\.jsonl:1; legal: every id once"),
        ({"id": 2}, r"a\.jsonl:2: missing field 'text'; .*came: 'id'"),
    ],
)
def test_bad_lines(write, bad, message):
    root = write("a.jsonl", [record(1), bad])
    with pytest.raises(DataError, match=message):
        RelationJsonl("a.jsonl", labels=("born_in",)).read(root, seed=0)


def test_ids_are_unique_over_the_files(write):
    write("a.jsonl", [record(1), record(2)])
    root = write("b.jsonl", [record(3), record(2)])
    with pytest.raises(DataError, match=r"b\.jsonl:2: id '2' is already taken at .*a\.jsonl:2"):
        RelationJsonl("a.jsonl", test="b.jsonl").read(root, seed=0)


def test_empty_missing_and_badly_encoded_files(write, tmp_path):
    root = write("a.jsonl", [""])
    with pytest.raises(DataError, match=r"a\.jsonl: no records; legal: at least one JSON object"):
        RelationJsonl("a.jsonl").read(root, seed=0)
    with pytest.raises(DataError, match=r"b\.jsonl: no such file; .*LIGHTNING_RAG_DATA"):
        RelationJsonl("b.jsonl").read(root, seed=0)
    line = json.dumps(record(1), ensure_ascii=False).encode("latin-1")
    (tmp_path / "a.jsonl").write_bytes(b"\n" + line)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: byte {line.index(0xFC) + 1} of the file"):
        RelationJsonl("a.jsonl").read(root, seed=0)


@pytest.mark.parametrize("labels", [(), ("a", "a")])
def test_bad_label_lists(labels):
    with pytest.raises(UserError, match=r"legal: at least one label, each once"):
        RelationJsonl("a.jsonl", labels=labels)

"""TACRED and its patches, on invented records in TACRED's shape (its text needs a licence)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter

import pytest

from lightning_rag.data.readers import tacred
from lightning_rag.data.readers.tacred import RETACRED_LABELS, TACRED_LABELS, Tacred
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks import labels as wordings

TOKENS = ["Zorbo", "-LRB-", "Inc", "-RRB-", "hired", "Mira", "Quill", "in", "``", "Elm", "''", "."]


def record(identity, relation="per:employee_of", **changes):
    """Subject 'Mira Quill', object 'Zorbo ( Inc )'."""
    return {
        "id": identity,
        "docid": "D1",
        "relation": relation,
        "token": TOKENS,
        "subj_start": 5,
        "subj_end": 6,
        "obj_start": 0,
        "obj_end": 3,
        "subj_type": "PERSON",
        "obj_type": "ORGANIZATION",
        "stanford_ner": ["O"] * len(TOKENS),
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def files(patch=None, **splits):
        default = {
            "train": [record("t1"), record("t2", "no_relation")],
            "dev": [record("d1"), record("d2", "no_relation"), record("d3", "per:title")],
            "test": [record("e1"), record("e2")],
        }
        for split, value in (default | splits).items():
            path = tmp_path / "tacred/data/json" / f"{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        for name, value in (patch or {}).items():
            path = tmp_path / "tacred_patches" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        return tmp_path

    return files


TACREV = {
    "tacrev/dev_patch.json": [{"id": "d3", "relation": "no_relation"}],
    "tacrev/test_patch.json": [{"id": "e1", "relation": "org:members"}],
}
RETACRED = {
    "Re-TACRED/train_id2label.json": {"t2": "per:identity"},
    "Re-TACRED/dev_id2label.json": {"d3": "org:city_of_branch", "d1": "no_relation"},
    "Re-TACRED/test_id2label.json": {"e1": "per:employee_of", "e2": "org:members"},
}


def pairs(instances):
    return [(i.id, i.answers[0]) for i in instances]


def test_spans_include_the_last_token_and_brackets_are_restored(write):
    splits = Tacred().read(write(), seed=0)
    first = splits.train[0]
    assert first.text == "Zorbo ( Inc ) hired Mira Quill in `` Elm '' ."
    assert first.text[first.head.start : first.head.end] == "Mira Quill"
    assert first.text[first.tail.start : first.tail.end] == "Zorbo ( Inc )"
    assert (first.head.type, first.tail.type) == ("PERSON", "ORGANIZATION")
    assert first.group == "D1"
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [2, 3, 2]
    assert splits.labels == TACRED_LABELS


def test_a_record_without_a_document_is_its_own_group(write):
    sample = record("t1")
    del sample["docid"]
    assert Tacred().read(write(train=[sample]), seed=0).train[0].group == ""


def test_tacrev_replaces_the_listed_labels_of_dev_and_test(write, caplog):
    splits = Tacred(patches="tacrev").read(write(patch=TACREV), seed=0)
    assert pairs(splits.train) == [("t1", "per:employee_of"), ("t2", "no_relation")]
    expected = [("d1", "per:employee_of"), ("d2", "no_relation"), ("d3", "no_relation")]
    assert pairs(splits.validation) == expected
    assert pairs(splits.test) == [("e1", "org:members"), ("e2", "per:employee_of")]
    assert splits.labels == TACRED_LABELS
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "ce23ba10ca15bde94a3f733679bf1b05" in warnings[0]


def test_the_published_files_are_known_by_their_md5(write, caplog, monkeypatch):
    """The sum is that of the file as json.dump writes it, the labels replaced in place."""
    root = write(patch=TACREV)
    sums = {}
    for split in ("dev", "test"):
        data = json.loads((root / f"tacred/data/json/{split}.json").read_text())
        patch = {p["id"]: p["relation"] for p in TACREV[f"tacrev/{split}_patch.json"]}
        for item in data:
            item["relation"] = patch.get(item["id"], item["relation"])
        with (root / "patched.json").open("w") as file:
            json.dump(data, file)
        sums[split] = hashlib.md5((root / "patched.json").read_bytes()).hexdigest()
    monkeypatch.setattr(tacred, "_TACREV_MD5", sums)
    Tacred(patches="tacrev").read(root, seed=0)
    assert not caplog.records


def test_retacred_keeps_only_the_listed_ids(write):
    splits = Tacred(patches="retacred").read(write(patch=RETACRED), seed=0)
    assert pairs(splits.train) == [("t2", "per:identity")]
    assert pairs(splits.validation) == [("d1", "no_relation"), ("d3", "org:city_of_branch")]
    assert pairs(splits.test) == [("e1", "per:employee_of"), ("e2", "org:members")]
    assert splits.labels == RETACRED_LABELS


def test_patch_folder_may_be_anywhere(write, tmp_path):
    root = write(patch=RETACRED)
    (root / "tacred_patches/Re-TACRED").rename(tmp_path / "labels")
    splits = Tacred(patches="retacred", patch_folder=str(tmp_path / "labels")).read(root, seed=0)
    assert len(splits.train) == 1


def test_label_inventories():
    assert (len(TACRED_LABELS), len(RETACRED_LABELS)) == (42, 40)
    assert Counter(label[:3] for label in TACRED_LABELS) == {"no_": 1, "per": 25, "org": 16}
    assert len(set(RETACRED_LABELS)) == 40
    assert set(TACRED_LABELS) == set(wordings.TACRED)  # written independently of this list
    assert set(RETACRED_LABELS) == set(wordings.RETACRED)


@pytest.mark.parametrize(("split", "size"), [("dev", 1590), ("test", 936)])
def test_real_tacrev_patches(data_root, split, size):
    patch = dict(tacred._tacrev(data_root / f"tacred_patches/tacrev/{split}_patch.json"))
    assert len(patch) == size
    assert set(patch.values()) <= set(TACRED_LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"subj_end": 12},
            r"train\.json: record 1: subj_start, subj_end is tokens 5 to 12 .* of 12",
        ),
        ({"obj_end": -1}, r"train\.json: record 1: obj_start, obj_end is tokens 0 to -1"),
        ({"subj_start": "5"}, r"record 1: field 'subj_start' is a string, '5'; legal: an integer"),
        ({"relation": "per:boss"}, r"record 1: unknown label 'per:boss'; legal: no_relation, org:"),
        ({"token": "a b"}, r"record 1: field 'token' is a string, 'a b'; legal: a list"),
        ({"id": "d1"}, r"dev\.json: record 1: id 'd1' is already taken at .*train\.json: record 1"),
    ],
)
def test_bad_records(write, changes, message):
    with pytest.raises(DataError, match=message):
        Tacred().read(write(train=[record("t1") | changes]), seed=0)


def test_missing_field_and_empty_split(write):
    sample = record("t1")
    del sample["obj_type"]
    with pytest.raises(DataError, match=r"train\.json: record 1: missing field 'obj_type'; legal"):
        Tacred().read(write(train=[sample]), seed=0)
    with pytest.raises(DataError, match=r"test\.json: \[\]; legal: a JSON list of at least one"):
        Tacred().read(write(test=[]), seed=0)


@pytest.mark.parametrize(
    ("patches", "name", "content", "message"),
    [
        (
            "tacrev",
            "tacrev/dev_patch.json",
            [{"id": "zz", "relation": "no_relation"}],
            r"dev_patch\.json: 1 of 1 ids are not in .*dev\.json, first 'zz'; legal: ids of the",
        ),
        (
            "tacrev",
            "tacrev/dev_patch.json",
            [{"id": "d1", "relation": "per:identity"}],
            r"dev_patch\.json: record 1: unknown label 'per:identity'",
        ),
        (
            "tacrev",
            "tacrev/test_patch.json",
            [{"id": "e1", "relation": "per:age"}] * 2,
            r"test_patch\.json: record 2: id 'e1' is already taken at .*: record 1",
        ),
        (
            "retacred",
            "Re-TACRED/train_id2label.json",
            {"t1": "org:parents"},
            r"train_id2label\.json: id 't1': unknown label 'org:parents'; legal: no_relation",
        ),
        (
            "retacred",
            "Re-TACRED/test_id2label.json",
            {"t1": "no_relation"},
            r"test_id2label\.json: 1 of 1 ids are not in .*test\.json, first 't1'",
        ),
        (
            "retacred",
            "Re-TACRED/train_id2label.json",
            [],
            r"train_id2label\.json: legal: a JSON object of id: label, not empty",
        ),
    ],
)
def test_bad_patches(write, patches, name, content, message):
    root = write(patch={**TACREV, **RETACRED, name: content})
    with pytest.raises(DataError, match=message):
        Tacred(patches=patches).read(root, seed=0)


def test_missing_patch_and_unknown_name(write):
    with pytest.raises(DataError, match=r"Re-TACRED/train_id2label\.json: no such file"):
        Tacred(patches="retacred").read(write(), seed=0)
    with pytest.raises(UserError, match="patches is 'new'; legal: none, tacrev, retacred"):
        Tacred(patches="new")

"""The official SemEval-2010 Task 8 files, and what happens to damaged ones."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from lightning_rag.data.readers.semeval2010 import LABELS, TEST_FILE, TRAIN_FILE, SemEval2010Task8
from lightning_rag.data.splits import ids_hash, subset
from lightning_rag.errors import DataError

# Counts of the release, training / test: (e1,e2) and (e2,e1).
COUNTS = {
    "Cause-Effect": ((344, 134), (659, 194)),
    "Component-Whole": ((470, 162), (471, 150)),
    "Content-Container": ((374, 153), (166, 39)),
    "Entity-Destination": ((844, 291), (1, 1)),
    "Entity-Origin": ((568, 211), (148, 47)),
    "Instrument-Agency": ((97, 22), (407, 134)),
    "Member-Collection": ((78, 32), (612, 201)),
    "Message-Topic": ((490, 210), (144, 51)),
    "Product-Producer": ((323, 108), (394, 123)),
}


@pytest.fixture(scope="module")
def splits(data_root):
    return SemEval2010Task8().read(data_root, seed=0)


def test_official_sizes_and_label_counts(splits):
    train = splits.train + splits.validation
    assert (len(train), len(splits.validation), len(splits.test)) == (8000, 800, 2717)
    assert {int(i.id) for i in train} == set(range(1, 8001))
    assert [int(i.id) for i in splits.test] == list(range(8001, 10718))
    expected = [Counter(Other=1410), Counter(Other=454)]
    for name, orders in COUNTS.items():
        for order, counts in zip(("e1,e2", "e2,e1"), orders, strict=True):
            for counter, count in zip(expected, counts, strict=True):
                counter[f"{name}({order})"] = count
    for part, counter in zip((train, splits.test), expected, strict=True):
        assert Counter(i.answers[0] for i in part) == counter
    assert len(splits.labels) == len(set(splits.labels)) == 19
    assert set(splits.labels) == set(expected[0])
    assert splits.labels == LABELS
    assert splits.passages == ()


def test_spans_are_the_tagged_words_and_nothing_else_changed(splits, data_root):
    raw = {}
    for file in (TRAIN_FILE, TEST_FILE):
        content = (data_root / "semeval2010_task8" / file).read_bytes().decode("ascii")
        raw.update(re.findall(r'^(\d+)\t"(.*)"\r\n', content, flags=re.MULTILINE))
    assert len(raw) == 10717
    for instance in splits.train + splits.validation + splits.test:
        head, tail, text = instance.head, instance.tail, instance.text
        assert head.end <= tail.start
        tagged = (
            f"{text[: head.start]}<e1>{text[head.start : head.end]}</e1>"
            f"{text[head.end : tail.start]}"
            f"<e2>{text[tail.start : tail.end]}</e2>{text[tail.end :]}"
        )
        assert tagged == raw[instance.id]
        assert "\r" not in text
        assert "Comment:" not in text


def test_no_sentence_is_in_training_and_validation(splits):
    def sentences(part):
        return {" ".join(i.text.lower().split()) for i in part}

    assert not sentences(splits.train) & sentences(splits.validation)
    repeated = Counter(i.group for i in splits.train + splits.validation)
    assert sum(count - 1 for count in repeated.values()) == 25  # so the test above can fail
    assert len(sentences(splits.train + splits.validation) & sentences(splits.test)) == 16


def test_validation_follows_the_labels_and_the_seed(splits, data_root):
    total = Counter(i.answers[0] for i in splits.train + splits.validation)
    for label, count in Counter(i.answers[0] for i in splits.validation).items():
        assert abs(count - total[label] / 10) <= 2
    again = SemEval2010Task8().read(data_root, seed=0)
    other = SemEval2010Task8(validation_fraction=0.2).read(data_root, seed=1)
    assert again == splits
    assert len(other.validation) == 1600
    assert ids_hash(other.test) == ids_hash(splits.test)
    assert ids_hash(other.validation) != ids_hash(splits.validation)


def test_regimes_hold_every_label(splits):
    for fraction, size in ((0.01, 72), (0.05, 360), (0.1, 720), (1.0, 7200)):
        part = subset(splits.train, fraction=fraction, seed=0)
        assert len(part) == size
        assert {i.answers[0] for i in part} == set(LABELS)


GOOD = (
    '1\t"The <e1>cat</e1> sat in the<e2>box</e2>."\r\n'
    "Content-Container(e1,e2)\r\nComment: leak\r\n\r\n"
    '2\t"A "<e1>cup</e1>" of <e2>tea</e2>."\r\nOther\r\nComment:\r\n\r\n'
)
TEST = GOOD.replace("1\t", "3\t").replace("2\t", "4\t")


@pytest.fixture
def read(tmp_path):
    def of(train, test=TEST):
        for file, content in ((TRAIN_FILE, train), (TEST_FILE, test)):
            path = tmp_path / "semeval2010_task8" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return SemEval2010Task8(validation_fraction=0.5).read(tmp_path, seed=0)

    return of


@pytest.mark.parametrize("content", [GOOD, GOOD.replace("\r", ""), GOOD.rstrip()])
def test_glued_markers_and_inner_quotes(read, content):
    splits = read(content)
    first, second = sorted(splits.train + splits.validation, key=lambda i: i.id)
    assert first.text == "The cat sat in thebox."
    assert first.text[first.tail.start : first.tail.end] == "box"
    assert second.text == 'A "cup" of tea.'
    assert second.answers == ("Other",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2\t", "1\t", r"TRAIN_FILE\.TXT:5: id '1' is already taken at .*TRAIN_FILE\.TXT:1;"),
        ("2\t", "3\t", r"TEST_FILE_FULL\.TXT:1: id '3' is already taken at .*TRAIN_FILE\.TXT:5;"),
        (
            "\r\nOther",
            "\r\nOthr",
            r"TRAIN_FILE\.TXT:6: unknown label 'Othr'; legal: Cause-Effect\(",
        ),
        ("(e1,e2)", "", r"TRAIN_FILE\.TXT:2: unknown label 'Content-Container'; legal: Cause-"),
        ("Other\r\n", "", r"TRAIN_FILE\.TXT:7: the record ends after 2 line\(s\); legal: a sent"),
        ("Other\r\nComment:\r\n\r\n", "", r"TRAIN_FILE\.TXT:5: the file ends after 1 line\(s\)"),
        ("Comment: leak\r\n", "A leak\r\n", r"TRAIN_FILE\.TXT:3: 'A leak' is no comment; legal"),
        ("<e2>tea</e2>", "tea", r"TRAIN_FILE\.TXT:5: .*legal: <e1>…</e1> … <e2>…</e2>, once each"),
        ("of <e2>", "of <e2> <e2>", r"TRAIN_FILE\.TXT:5: .*once each"),
        ("cup", "", r"TRAIN_FILE\.TXT:5: e1 is \[3, 3\) in a sentence of"),
        ("1\t", "one\t", r"TRAIN_FILE\.TXT:1: .*; legal: a number, a tab and a \"sentence\""),
        (GOOD, "", r"TRAIN_FILE\.TXT: no records; legal: a sentence, a label"),
        (GOOD, "\r\n\r\n", r"TRAIN_FILE\.TXT: no records"),
    ],
)
def test_damaged_files(read, old, new, message):
    assert old in GOOD
    with pytest.raises(DataError, match=message):
        read(GOOD.replace(old, new))


def test_wrong_encoding(read):
    with pytest.raises(DataError, match=r"TRAIN_FILE\.TXT:1: byte 11 of the file \(0xe9\)"):
        read(GOOD.replace("cat", "é").encode("latin-1"))


def test_missing_file_names_path_and_variable(tmp_path):
    with pytest.raises(DataError, match=r"TRAIN_FILE\.TXT: no such file; .*LIGHTNING_RAG_DATA"):
        SemEval2010Task8().read(tmp_path, seed=0)

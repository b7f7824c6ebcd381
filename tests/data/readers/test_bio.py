"""CrossNER, WNUT 2017 and NCBI Disease as released, and damaged files of tokens and tags."""

from __future__ import annotations

import logging
import random
from collections import Counter

import pytest

from lightning_rag.data.readers.bio import CROSSNER, BioEntities, CrossNer, entities
from lightning_rag.data.store import PassageStore, check_no_leak
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.information_extraction import InformationExtraction, linearize

WNUT = BioEntities(
    "wnut17",
    "wnut17/wnut17train.conll",
    "wnut17/emerging.dev.conll",
    "wnut17/emerging.test.annotated",
    {
        "person": "person",
        "location": "location",
        "group": "group",
        "corporation": "corporation",
        "product": "product",
        "creative-work": "creative work",
    },
)
NCBI = BioEntities("ncbi_disease", *(f"ncbi_disease/{s}.tsv" for s in ("train", "devel", "test")))

# Sentences and entities of train, validation and test, as the data's notes count them; training
# sentences whose text is in another split, up to case and white space (counted apart).
RELEASED = {
    "ai": (CrossNer("ai"), (100, 350, 431), (532, 1549, 1809), 0),
    "literature": (CrossNer("literature"), (100, 400, 416), (541, 2130, 2266), 0),
    "politics": (CrossNer("politics"), (200, 541, 651), (1304, 3482, 4209), 0),
    "science": (CrossNer("science"), (200, 450, 543), (1075, 2538, 3089), 5),
    "wnut17": (WNUT, (3394, 1009, 1287), (1975, 836, 1079), 0),
    "ncbi": (NCBI, (5424, 923, 940), (5134, 787, 960), 13),
}


def parts(splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def raw_sentences(path):
    """The sentences of a file by another way: split at blank lines."""
    lines = path.read_text(encoding="utf-8").split("\n")
    text = "\n".join(line if line.strip() else "" for line in lines)
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return [[line.split("\t") for line in block.strip("\n").split("\n")] for block in blocks]


@pytest.mark.parametrize("name", RELEASED)
def test_released_files(name, data_root):
    reader, sentences, mentions, repeats = RELEASED[name]
    splits = reader.read(data_root, seed=0)
    assert splits.labels == splits.passages == ()
    for part in (splits.train, splits.validation, splits.test):
        InformationExtraction().check_answers(part)
    held_out = {"validation": splits.validation, "test": splits.test}
    assert check_no_leak(PassageStore.from_instances(splits.train), held_out) == 0
    for (split, instances), size, count in zip(
        parts(splits).items(), sentences, mentions, strict=True
    ):
        raw = raw_sentences(data_root / reader.files[split])
        assert len(raw) == size
        assert sum(tag.startswith("B-") for s in raw for _, tag in s) == count
        assert len(instances) == size - (repeats if split == "train" else 0)
        for instance in instances:
            task, part, number = instance.id.split("/")
            assert (task, part) == (f"NER_{reader.name}", split)
            assert instance.task == task
            tokens = raw[int(number)]
            assert instance.text == " ".join(token for token, _ in tokens)
            extraction = instance.extraction
            assert extraction.kind == "entities"
            assert instance.answers == (linearize(extraction),)
            assert len(extraction.facts) == sum(tag.startswith("B-") for _, tag in tokens)
            for fact in extraction.facts:
                (mention,) = fact.mentions
                assert fact.type in extraction.schema
                assert instance.text[mention.start : mention.end] == mention.text
            words = Counter(w for f in extraction.facts for w in f.mentions[0].text.split(" "))
            assert words == Counter(token for token, tag in tokens if tag != "O")


def test_words_of_the_types(data_root):
    splits = CrossNer("politics").read(data_root, seed=0)
    schema = splits.train[0].extraction.schema
    assert schema == tuple(CROSSNER["politics"].values())
    assert {i.extraction.schema for part in parts(splits).values() for i in part} == {schema}
    assert "political party" in schema
    answers = "; ".join(i.answers[0] for i in splits.train)
    assert "political party: " in answers
    assert "politicalparty" not in answers
    assert NCBI.read(data_root, seed=0).test[0].extraction.schema == ("disease",)


def test_types_of_crossner_are_those_of_the_files(data_root):
    for domain in ("ai", "literature", "politics", "science"):  # music is not among the data
        tags = set()
        for split in ("train", "dev", "test"):
            for sentence in raw_sentences(data_root / "crossner" / domain / f"{split}.txt"):
                tags |= {tag[2:] for _, tag in sentence if tag != "O"}
        assert tags == set(CROSSNER[domain])
    assert {name: len(types) for name, types in CROSSNER.items()} == {
        "ai": 14,
        "literature": 12,
        "music": 13,
        "politics": 9,
        "science": 17,
    }


def test_wnut_keeps_sentences_without_entities(data_root):
    train = WNUT.read(data_root, seed=0).train
    assert sum(not i.extraction.facts for i in train) == 2166
    assert {i.answers for i in train if not i.extraction.facts} == {("None",)}
    types = Counter(fact.type for i in train for fact in i.extraction.facts)
    assert types == {
        "person": 660,
        "location": 548,
        "group": 264,
        "corporation": 221,
        "product": 142,
        "creative work": 140,
    }


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-x I-x O", [(0, 1, "x")]),
        ("B-x B-x", [(0, 0, "x"), (1, 1, "x")]),
        ("I-x I-x O", [(0, 1, "x")]),  # an I- without B- begins an entity
        ("O I-x B-x I-x", [(1, 1, "x"), (2, 3, "x")]),
        ("B-x I-y I-y", [(0, 0, "x"), (1, 2, "y")]),  # of another type: one of its own
        ("B-x O I-x", [(0, 0, "x"), (2, 2, "x")]),
        ("B-creative-work I-creative-work", [(0, 1, "creative-work")]),
        ("", []),
    ],
)
def test_entities_of_tags(tags, found):
    assert entities(tags.split()) == found


def test_entities_of_random_tags():
    """Tags written from drawn entities give these entities back."""
    draw = random.Random(0)
    for _ in range(300):
        wanted, tags = [], []
        for _ in range(draw.randrange(6)):
            length, kind = draw.randrange(1, 4), draw.choice(["", "a", "b", "a-b"])
            if kind:
                wanted.append((len(tags), len(tags) + length - 1, kind))
                tags += [f"B-{kind}"] + [f"I-{kind}"] * (length - 1)
            else:
                tags += ["O"] * length
        assert entities(tags) == wanted


GOOD = "Ada\tB-person\nLovelace\tI-person\nwrote\tO\n\nParis\tB-place\n"


@pytest.fixture
def read(tmp_path):
    def of(train=GOOD, labels=None):
        for name, text in (("train", train), ("dev", "x\tO\n"), ("test", "in\tO\nRome\tB-place\n")):
            (tmp_path / name).write_text(text, encoding="utf-8", newline="")
        return BioEntities("toy", "train", "dev", "test", labels).read(tmp_path, seed=0)

    return of


def test_small_file(read):
    first, second = read().train
    assert (first.id, first.text) == ("NER_toy/train/0", "Ada Lovelace wrote")
    assert first.answers == ("person: Ada Lovelace",)
    assert (first.extraction.facts[0].mentions[0].start, second.text) == (0, "Paris")
    assert second.extraction.schema == ("person", "place")


def test_schema_is_as_the_labels_are_given(read):
    first, second = read(labels={"place": "city", "person": "human", "unused": "other"}).train
    assert first.extraction.schema == ("city", "human", "other")
    assert (first.answers, second.answers) == (("human: Ada Lovelace",), ("city: Paris",))


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("\n", "\r\n"),
        "\ufeff" + GOOD,
        "\n\n" + GOOD.replace("\n\n", "\n\t\n\n \t \n") + "\n\n",
        GOOD.rstrip("\n"),
    ],
)
def test_other_line_ends_and_separators(read, text):
    assert read(text) == read(GOOD)


def test_characters_outside_ascii_and_regex(read):
    (one,) = read("(\tO\nÉmile\tB-x\n[*+\tI-x\n)\tO\n").train
    (mention,) = one.extraction.facts[0].mentions
    assert mention.text == one.text[mention.start : mention.end] == "Émile [*+"


def test_stray_inside_tags_are_logged(read, caplog):
    caplog.set_level(logging.WARNING)
    (one,) = read("a\tO\nb\tI-x\nc\tI-x\nd\tB-x\n").train
    assert [f.mentions[0].text for f in one.extraction.facts] == ["b c", "d"]
    assert "train: 1 entities begin with an I- tag; read as B-" in caplog.text
    caplog.clear()
    read()
    assert not caplog.records


def test_a_training_sentence_of_the_test_split_goes(read):
    splits = read(GOOD + "\nIN\tO\nrome\tO\n")
    assert [i.id for i in splits.train] == ["NER_toy/train/0", "NER_toy/train/1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"train: no sentences; legal: a token, a tab and a tag"),
        ("\n\t\n", r"train: no sentences"),
        ("a\tO\nb\n", r"train:2: 1 column\(s\) in 'b'; legal: a token, a tab and a tag"),
        ("a\tO\n\nb\tNN\tB-x\n", r"train:3: 3 column\(s\) in 'b\\tNN\\tB-x'"),
        ("a B-x\n", r"train:1: 1 column\(s\)"),
        (" \tO\n\nb\tO\n \tB-x", r"train:1: the token ' ' is blank"),
        ("a\tO\nb\tE-x\n", r"train:2: tag 'E-x'; legal: O, B-<type>, I-<type>"),
        ("a\tB\n", r"train:1: tag 'B'"),
        ("a\tB-\n", r"train:1: tag 'B-'"),
        ("a\tx\n", r"train:1: tag 'x'"),
        ("a\t\n", r"train:1: tag ''"),
        ("a\tO-x\n", r"train:1: tag 'O-x'"),
    ],
)
def test_damaged_files(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)


def test_unknown_types_and_labels(read, tmp_path):
    with pytest.raises(DataError, match=r"train:5: unknown label 'place'; legal: person"):
        read(labels={"person": "person"})
    with pytest.raises(UserError, match="labels: the words of label 'a' are 'X'"):
        read(labels={"a": "X", "b": "x"})
    with pytest.raises(UserError, match=r"labels is \{\}; legal: at least one type"):
        read(labels={})
    with pytest.raises(UserError, match="types of toy: the words of label 'A_b'"):
        read("a\tB-A_b\nb\tB-a-b\n")
    (tmp_path / "none").write_text("a\tO\n")
    with pytest.raises(DataError, match=r"none.*: no entity in any file; legal: at least one"):
        BioEntities("toy", "none", "none", "none").read(tmp_path, seed=0)
    with pytest.raises(DataError, match=r"absent: no such file; .*LIGHTNING_RAG_DATA"):
        BioEntities("toy", "absent", "none", "none").read(tmp_path, seed=0)
    with pytest.raises(UserError, match="domain is 'sport'; legal: ai, literature, music"):
        CrossNer("sport")


def test_no_utf8(read, tmp_path):
    read()
    (tmp_path / "train").write_bytes(b"a\tO\nb\xff\tO\n")
    with pytest.raises(DataError, match=r"train:2: byte 5 of the file \(0xff\) is not UTF-8"):
        BioEntities("toy", "train", "dev", "test").read(tmp_path, seed=0)

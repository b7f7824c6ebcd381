"""A data set with its store on disk is the one with its store in memory."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.data import keeping
from lightning_rag.data.candidates import BM25, FirstStage
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.dpr import Dpr
from lightning_rag.data.readers.question_jsonl import QuestionJsonl
from lightning_rag.data.readers.synthetic import SyntheticQuestions, SyntheticRelations
from lightning_rag.errors import DataError, UserError
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.tasks.relation_extraction import RelationExtraction

PLACES = ["London", "Paris", "Rome", "Oslo", "Bonn", "Prague"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    passages = [
        {"id": f"p{n}", "title": f"Name{n}", "text": f"Name{n} was born in {PLACES[n % 6]}."}
        for n in range(60)
    ]
    questions = [
        {
            "id": f"q{n}",
            "question": f"Where was Name{n} born?",
            "answers": [PLACES[n % 6]],
            **({"relevant": [f"p{n}"]} if n % 2 else {}),
        }
        for n in range(48)
    ]
    for name, records in (
        ("corpus", passages),
        ("train", questions[:32]),
        ("dev", questions[32:40]),
        ("test", questions[40:]),
    ):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def module(
    root: Path, store: str | None, first_stage: FirstStage | None = None, reader: object = None
) -> RagDataModule:
    files = QuestionJsonl("corpus.jsonl", "train.jsonl", "dev.jsonl", "test.jsonl")
    return RagDataModule(
        reader or files,  # type: ignore[arg-type]
        QuestionAnswering(),
        first_stage or BM25(),
        root=str(root),
        num_candidates=8,
        cache_dir=str(root / f"cache-{store}"),
        store=store,  # type: ignore[arg-type]
    )


def dense() -> FirstStage:
    from lightning_rag.retrieval.dense import Dense

    tiny = TinyConfig(vocab_size=300, hidden_size=16, heads=2, layers=1)
    return Dense(EncoderConfig(source="tiny", tiny=tiny))


@pytest.mark.parametrize("first_stage", [BM25, dense])
@pytest.mark.parametrize("reader", [None, SyntheticQuestions(train=40, validation=8, test=8)])
def test_disk_is_memory(root: Path, first_stage, reader) -> None:
    memory, disk = (module(root, s, first_stage(), reader) for s in ("memory", "disk"))
    memory.setup()
    disk.setup()
    assert disk.store.on_disk
    assert not memory.store.on_disk
    assert list(disk.store) == list(memory.store)
    assert disk.summary() == memory.summary()
    assert disk.corpus() == memory.corpus()
    for split in ("train", "validation", "test"):
        one, other = memory.queries(split), disk.queries(split)
        assert one.instances == other.instances
        np.testing.assert_array_equal(one.candidates.ids, other.candidates.ids)
        np.testing.assert_allclose(one.candidates.scores, other.candidates.scores, rtol=1e-5)
        for mine, theirs in zip(one.relevant, other.relevant, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for mine, theirs in zip(one.answers, other.answers, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for mine, theirs in zip(one.excluded, other.excluded, strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_the_default_goes_by_the_size_of_the_file(root: Path, monkeypatch) -> None:
    small = module(root, None)
    small.setup()
    assert not small.store.on_disk
    monkeypatch.setattr(keeping, "LARGE", 1000)
    large = module(root, None)
    large.setup()
    assert large.store.on_disk
    assert large.store.fingerprint == small.store.fingerprint


def test_a_changed_file_is_stored_anew(root: Path) -> None:
    module(root, "disk").setup()
    with (root / "corpus.jsonl").open("a") as file:
        file.write('{"id": "new", "text": "Born in Lima."}\n')
    again = module(root, "disk")
    again.setup()
    assert len(again.store) == 61


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_dpr(root: Path, share: float) -> None:
    (root / "psgs.tsv").write_text(
        "id\ttext\ttitle\n" + "".join(f"{n}\tBorn in {PLACES[n % 6]}.\tT{n}\n" for n in range(99))
    )
    questions = [
        {
            "question": f"Where {n}?",
            "answers": ["Rome"],
            "positive_ctxs": [{"title": "", "text": "", "passage_id": str(n)}],
        }
        for n in range(40)
    ]
    (root / "train.json").write_text(json.dumps(questions))
    reader = Dpr("psgs.tsv", "train.json", validation_fraction=0.2, corpus_share=share)
    memory, disk = module(root, "memory", reader=reader), module(root, "disk", reader=reader)
    memory.setup()
    disk.setup()
    assert list(disk.store) == list(memory.store)
    assert disk.splits == replace(memory.splits, passages=())
    assert (len(disk.store) < 99) == (share < 1)
    questions[0]["positive_ctxs"] = [{"title": "", "text": "", "passage_id": "777"}]
    (root / "train.json").write_text(json.dumps(questions))
    for store in ("memory", "disk"):
        with pytest.raises(DataError, match=r"psgs\.tsv: 1 of 40 passages .* missing, first '777'"):
            module(root, store, reader=reader).setup()


def test_what_a_share_needs_is_told(root: Path, caplog) -> None:
    """A share of the passages, which is what is advised where they are too many."""
    rows = "".join(f"{n}\t{'Born in Rome. ' * 500}\tT{n}\n" for n in range(300))
    (root / "psgs.tsv").write_text("id\ttext\ttitle\n" + rows)
    (root / "train.json").write_text(
        json.dumps([{"question": f"{n}?", "answers": ["Rome"]} for n in range(9)])
    )
    told = []
    for share in (1.0, 0.1):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            reader = Dpr("psgs.tsv", "train.json", validation_fraction=0.2, corpus_share=share)
            module(root, "disk", reader=reader).setup()
        told.append(float(re.findall(r"the passage store: about (\S+) MB of disk", caplog.text)[0]))
    assert told == pytest.approx([2.1, 0.2], abs=0.1)


def test_bad_input(root: Path, monkeypatch, caplog) -> None:
    with pytest.raises(UserError, match=r"data\.store is 'tape'; legal: memory, disk, or null"):
        module(root, "tape").setup()
    demonstrations = RagDataModule(
        SyntheticRelations(train=40, validation=8, test=8),
        RelationExtraction(scorer="accuracy", negative_label=None),
        BM25(),
        cache_dir=str(root / "cache"),
        store="disk",
    )
    with pytest.raises(UserError, match="labelled instances, which are in memory in any case"):
        demonstrations.setup()
    with (root / "test.jsonl").open("a") as file:
        file.write('{"id": "x", "question": "?", "answers": ["a"], "relevant": ["p999"]}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl: 1 of \d+ passages .* first 'p999'"):
        module(root, "disk").setup()
    with (root / "corpus.jsonl").open("a") as file:
        file.write('{"id": "p5", "text": "Again."}\n')
    with pytest.raises(DataError, match=r"more than once: p5 \(passages 6 and 61\)"):
        module(root, "disk").setup()


def test_what_is_needed_is_told(root: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        data = module(root, "disk")
        data.setup()
        data.queries("test")
    assert "the passage store: about " in caplog.text
    assert "the BM25 index: about " in caplog.text
    assert caplog.text.count("on disk") == 2

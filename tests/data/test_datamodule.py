"""One data set for all methods: splits, store, candidates, batches and what identifies them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_rag.data.candidates import BM25, Random
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.synthetic import SyntheticQuestions, SyntheticRelations
from lightning_rag.data.splits import Splits
from lightning_rag.errors import UserError
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.tasks.relation_extraction import RelationExtraction


class Leaking(Reader):
    """Puts a demonstration into the test split, under another id."""

    def read(self, root: Path | None, seed: int) -> Splits:
        splits = SyntheticRelations(train=40, validation=8, test=8).read(root, seed)
        demonstration = splits.passages[3].instance
        assert demonstration is not None
        copy = replace(demonstration, id="copy")
        return replace(splits, test=(*splits.test, copy))


def module(tmp_path: Path, **changes: object) -> RagDataModule:
    arguments: dict[str, object] = {
        "reader": SyntheticRelations(train=40, validation=8, test=8),
        "task": RelationExtraction(scorer="accuracy", negative_label=None),
        "first_stage": BM25(),
        "num_candidates": 6,
        "batch_size": 16,
        "cache_dir": str(tmp_path / "cache"),
    }
    made = RagDataModule(**{**arguments, **changes})
    made.setup()
    return made


def test_batches(tmp_path: Path) -> None:
    data = module(tmp_path)
    batches = list(data.train_dataloader())
    assert [len(batch.instances) for batch in batches] == [16, 16, 8]
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(40))
    for batch in batches:
        size = len(batch.instances)
        assert batch.candidate_ids.shape == batch.candidate_scores.shape == (size, 6)
        for row, instance in zip(batch.rows.tolist(), batch.instances, strict=True):
            assert data.splits.train[row] is instance


def test_relevance_is_what_the_task_says(tmp_path: Path) -> None:
    data = module(tmp_path)
    for split in ("train", "validation"):
        loader = data.estimate_dataloader() if split == "train" else data.val_dataloader()
        for batch in loader:
            for number, instance in enumerate(batch.instances):
                helpful = [
                    row
                    for row, passage in enumerate(data.store)
                    if data.task.relevant(instance, passage)
                    and not (split == "train" and passage.text == instance.text)
                ]
                assert batch.relevant_rows[number].tolist() == helpful
                own = [r for r, p in enumerate(data.store) if p.text == instance.text]
                assert batch.excluded_rows[number].tolist() == (own if split == "train" else [])
                expected = np.isin(batch.candidate_ids[number], helpful).astype(np.float32)
                assert batch.relevance[number].tolist() == expected.tolist()
                matching = [
                    row
                    for row, passage in enumerate(data.store)
                    if data.task.matches(instance, passage)
                    and not (split == "train" and passage.text == instance.text)
                ]
                assert batch.answer_rows[number].tolist() == matching


def test_training_queries_never_get_themselves(tmp_path: Path) -> None:
    data = module(tmp_path, first_stage=Random(), num_candidates=39)
    for batch in data.estimate_dataloader():
        for number, instance in enumerate(batch.instances):
            found = [data.store[row] for row in batch.candidate_ids[number].tolist()]
            assert instance.id not in {passage.id for passage in found}
            assert len({passage.id for passage in found}) == 39


def test_evaluation_is_in_order(tmp_path: Path) -> None:
    data = module(tmp_path, eval_batch_size=3, predict_split="validation")
    for loader, split in (
        (data.test_dataloader(), data.splits.test),
        (data.predict_dataloader(), data.splits.validation),
        (data.estimate_dataloader(), data.splits.train),
    ):
        assert [i for batch in loader for i in batch.instances] == list(split)


def test_leak_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test split .* passage store.*copy \(= "):
        module(tmp_path, reader=Leaking())


def test_regimes(tmp_path: Path) -> None:
    whole = module(tmp_path)
    few = module(tmp_path, fraction=0.25, num_candidates=2)
    assert len(few.splits.train) == 10
    assert {i.id for i in few.splits.train} < {i.id for i in whole.splits.train}
    assert few.splits.test == whole.splits.test
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"{i.id}\n" for i in few.splits.train))
    listed = module(tmp_path, ids_file=str(ids), num_candidates=2)
    assert listed.splits.train == few.splits.train
    assert listed.summary()["train"] == few.summary()["train"]
    assert listed.summary()["train"] != whole.summary()["train"]


class Spoiled(Reader):
    """Changes the answers of one instance of a split."""

    def __init__(self, split: str, answers: tuple[str, ...]) -> None:
        self.split, self.answers = split, answers

    def read(self, root: Path | None, seed: int) -> Splits:
        splits = SyntheticQuestions(train=16, validation=8, test=8).read(root, seed)
        first, *others = getattr(splits, self.split)
        return replace(
            splits, **{self.split: (replace(first, id="odd", answers=self.answers), *others)}
        )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_answers_are_checked_before_anything_is_computed(tmp_path: Path, split: str) -> None:
    reader = Spoiled(split, ("\u200b ",))
    with pytest.raises(UserError, match="instance 'odd' has the answer"):
        module(tmp_path, reader=reader, task=QuestionAnswering())


class YesOrNo(Reader):
    """Questions with a closed list of answers, of which the training split shows one."""

    def read(self, root: Path | None, seed: int) -> Splits:
        splits = SyntheticQuestions(train=16, validation=8, test=8).read(root, seed)
        said = {"train": ["yes"], "validation": ["yes", "maybe"], "test": ["yes", "no"]}
        return replace(
            splits,
            **{
                split: tuple(
                    replace(instance, answers=(answers[number % len(answers)],))
                    for number, instance in enumerate(getattr(splits, split))
                )
                for split, answers in said.items()
            },
        )


def test_closed_answers(tmp_path: Path) -> None:
    task = QuestionAnswering(answers=["yes", "no", "maybe"])
    data = module(tmp_path, reader=YesOrNo(), task=task)
    assert {"yes", "no", "maybe"} <= set(data.corpus())  # a vocabulary from scratch needs all
    with pytest.raises(UserError, match=r"has the answers.*exactly one of task.answers, yes, no$"):
        module(tmp_path, reader=YesOrNo(), task=QuestionAnswering(answers=["yes", "no"]))


class Unshared(Reader):
    """Brings no passages: the store is made of the training instances in use."""

    def read(self, root: Path | None, seed: int) -> Splits:
        splits = SyntheticRelations(train=40, validation=8, test=8).read(root, seed)
        return replace(splits, passages=())


def test_store_of_a_regime(tmp_path: Path) -> None:
    few = module(tmp_path, reader=Unshared(), fraction=0.25, num_candidates=2)
    assert [p.instance for p in few.store] == list(few.splits.train)
    with pytest.raises(UserError, match=r"12 candidates .* more than the 9 passages"):
        module(tmp_path, reader=Unshared(), fraction=0.25, num_candidates=12).queries("train")


def test_limited_evaluation(tmp_path: Path) -> None:
    data = module(tmp_path, validation_size=3, test_size=5)
    assert len(data.splits.validation) == 3
    assert len(data.splits.test) == 5
    assert len(module(tmp_path, test_size=99).splits.test) == 8


def test_candidates_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = module(tmp_path).queries("test").candidates
    monkeypatch.setattr(BM25, "search", lambda self, request: pytest.fail("searched again"))
    second = module(tmp_path).queries("test").candidates
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.scores, second.scores)
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        module(tmp_path, first_stage=BM25(k1=2.0)).queries("test")


def test_passages_of_a_corpus(tmp_path: Path) -> None:
    data = module(tmp_path, reader=SyntheticQuestions(), task=QuestionAnswering())
    assert len(data.store) == len(data.splits.passages)
    batch = next(iter(data.val_dataloader()))
    assert all(len(rows) > 0 for rows in batch.relevant_rows)
    # Its passages are known by id, and an answer stands elsewhere too.
    pairs = list(zip(batch.relevant_rows, batch.answer_rows, strict=True))
    assert any(relevant.tolist() != answers.tolist() for relevant, answers in pairs)
    for instance, rows in zip(batch.instances, batch.answer_rows, strict=True):
        holding = [r for r, p in enumerate(data.store) if data.task.matches(instance, p)]
        assert rows.tolist() == holding
    assert set(data.corpus()) >= {data.task.key(data.store[0]).text}


def test_metrics_within_the_candidates(tmp_path: Path) -> None:
    names = set(module(tmp_path, retrieval_ks=(1, 5, 20)).metrics())
    assert {"recall@1", "recall@5", "ndcg@5"} <= names
    assert "recall@20" not in names


@pytest.mark.parametrize("name", ["num_candidates", "batch_size", "eval_batch_size"])
def test_sizes_below_one(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"data.{name} is 0; legal: 1 or more"):
        module(tmp_path, **{name: 0})


def test_before_setup(tmp_path: Path) -> None:
    data = RagDataModule(SyntheticRelations(), RelationExtraction(), BM25())
    for name in ("splits", "store"):
        with pytest.raises(RuntimeError, match=f"RagDataModule.{name} before setup"):
            getattr(data, name)

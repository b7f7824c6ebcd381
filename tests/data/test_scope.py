"""Which demonstrations a query may retrieve where the data have several tasks."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_rag.data.candidates import (
    BM25,
    Candidates,
    FirstStage,
    Oracle,
    Random,
    SearchRequest,
)
from lightning_rag.data.datamodule import QuerySet, RagDataModule
from lightning_rag.data.readers.base import Reader
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.data.scope import ScopedRows, among, scoped, without
from lightning_rag.data.splits import Splits, subset
from lightning_rag.data.store import PassageStore
from lightning_rag.errors import UserError
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import Instance, Passage

NOTHING = np.empty(0, dtype=np.int64)


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_without_equals_the_difference_of_sets():
    generator = np.random.default_rng(0)
    for _ in range(200):
        mine, gone = (
            np.sort(generator.choice(30, generator.integers(0, 31), replace=False)) for _ in "ab"
        )
        expected = sorted(set(mine.tolist()) - set(gone.tolist()))
        assert without(mine, gone).tolist() == expected
        mixed = generator.permutation(mine)
        assert among(mixed, gone).tolist() == np.isin(mixed, gone).tolist()


def test_rows_are_joined_when_asked_for():
    generator = np.random.default_rng(1)
    own = [np.sort(generator.choice(40, n, replace=False)) for n in (0, 1, 5, 40, 3)]
    outside = [rows(), rows(0, 7, 39), np.arange(40)]
    found = ScopedRows(own, [1, 1, 2, 0, 0], outside)
    for query, (mine, scope) in enumerate(zip(own, [1, 1, 2, 0, 0], strict=True)):
        assert found[query].tolist() == sorted({*mine.tolist(), *outside[scope].tolist()})
    assert [array.tolist() for array in found] == [found[n].tolist() for n in range(5)]
    assert [array.tolist() for array in found[1:4]] == [found[n].tolist() for n in (1, 2, 3)]
    with pytest.raises(ValueError, match="2 queries have 1 scopes"):
        ScopedRows(own[:2], [0], outside)


def test_hashes_tell_scopes_apart():
    outside = [rows(1, 2), rows(3)]
    kinds = [
        ScopedRows([rows(), rows(4)], [0, 1], outside),
        ScopedRows([rows(), rows(4)], [1, 0], outside),
        ScopedRows([rows(), rows(5)], [0, 1], outside),
        ScopedRows([rows(), rows(4)], [0, 1], [rows(1), rows(2, 3)]),
        ScopedRows([rows(4), rows()], [0, 1], outside),
    ]
    assert len({kind.hash() for kind in kinds}) == len(kinds)
    assert kinds[0].hash() == ScopedRows([rows(), rows(4)], [0, 1], outside).hash()


def demonstration(number: int, task: str, *, held_out: bool = False) -> Passage:
    text = f"text {number}"
    return Passage(
        str(number), text, instance=Instance(str(number), text, task=task, held_out=held_out)
    )


STORE = PassageStore(
    [
        demonstration(0, "a"),
        demonstration(1, "b"),
        Passage("2", "a plain passage"),
        demonstration(3, "c", held_out=True),
        demonstration(4, "a"),
    ]
)
QUERIES = [Instance("q0", "x", task="a"), Instance("q1", "y", task="b")]


@pytest.mark.parametrize(
    ("scope", "training", "expected"),
    [
        ("any", False, [[4], []]),
        ("any", True, [[3, 4], [3]]),
        ("same_task", False, [[1, 3, 4], [0, 3, 4]]),
        ("same_task", True, [[1, 3, 4], [0, 3, 4]]),
    ],
)
def test_what_lies_outside(scope, training, expected):
    own = [rows(4), rows()]
    found = scoped(QUERIES, STORE, own, scope=scope, training=training)
    assert [array.tolist() for array in found] == expected
    if (scope, training) == ("any", False):
        assert found is own


def test_one_task_is_left_alone():
    own = [rows(0), rows()]
    store = PassageStore([demonstration(0, ""), demonstration(1, "")])
    queries = [replace(query, task="") for query in QUERIES]
    assert scoped(queries, store, own, scope="same_task", training=True) is own


@pytest.mark.parametrize("stage", [BM25(), Random(), Oracle()], ids=lambda s: type(s).__name__)
def test_small_scopes_are_padded(stage: FirstStage):
    keys = [f"word{number % 4} text" for number in range(12)]
    outside = [np.arange(3, 12), rows(0, 1, 2)]
    exclude = ScopedRows([rows(1), rows(4), rows()], [0, 1, 0], outside)
    queries, relevant = ["word1", "word2", "nothing"], [rows(1, 2), rows(4, 5, 9), NOTHING]
    found = stage.search(SearchRequest(queries, keys, 6, exclude, relevant, seed=0))
    assert [sorted(found.ids[n][found.ids[n] >= 0].tolist()) for n in (0, 2)] == [[0, 2], [0, 1, 2]]
    assert len(set(found.ids[1].tolist())) == 6
    assert set(found.ids[1].tolist()) <= {3, *range(5, 12)}
    assert (found.ids[0, 2:] == -1).all()
    assert np.isneginf(found.scores[0, 2:]).all()


def test_a_store_that_is_too_small_is_still_refused():
    exclude = ScopedRows([rows(0), rows(1)], [0, 1], [rows(1, 2), rows(0)])
    legal = SearchRequest(["a", "b"], ["x", "y", "z"], 2, exclude, [NOTHING] * 2, 0)
    assert legal.fingerprint()["exclude"] == exclude.hash()
    with pytest.raises(UserError, match=r"3 candidates .* more than the 2 passages"):
        SearchRequest(["a", "b"], ["x", "y", "z"], 3, exclude, [NOTHING] * 2, 0)


class Tasks(Reader):
    """The made-up relations dealt out to four tasks, of which "d" is held out and "c" is small."""

    def __init__(self, *, leaking: bool = False, empty: bool = False) -> None:
        self.leaking, self.empty = leaking, empty

    def read(self, root: Path | None, seed: int) -> Splits:
        splits = SyntheticRelations(train=40, validation=8, test=8).read(root, seed)
        names = ["a", "b", "c", "d"]

        def of(task: str, instance: Instance) -> Instance:
            return replace(instance, task=task, held_out=task == "d", relevant=())

        passages = []
        for number, passage in enumerate(splits.passages):
            task = "c" if number in (3, 9) else ("a", "b", "d")[number % 3]
            if task != "c" or not self.empty:
                passages.append(replace(passage, instance=of(task, passage.instance)))
        trained = names if self.leaking else names[:3]
        return replace(
            splits,
            train=tuple(of(trained[n % len(trained)], i) for n, i in enumerate(splits.train)),
            validation=tuple(of(names[n % 3], i) for n, i in enumerate(splits.validation)),
            test=tuple(of(names[n % 4], i) for n, i in enumerate(splits.test)),
            passages=tuple(passages),
        )


def module(tmp_path: Path, **changes: object) -> RagDataModule:
    arguments: dict[str, object] = {
        "reader": Tasks(),
        "task": RelationExtraction(scorer="accuracy", negative_label=None),
        "first_stage": BM25(),
        "num_candidates": 6,
        "cache_dir": str(tmp_path / "cache"),
    }
    made = RagDataModule(**{**arguments, **changes})
    made.setup()
    return made


@pytest.mark.parametrize("train_scope", ["any", "same_task"])
@pytest.mark.parametrize("scope", ["any", "same_task"])
def test_every_query_keeps_to_its_scope(tmp_path, train_scope, scope):
    data = module(tmp_path, train_scope=train_scope, scope=scope)
    seen = set()
    for split, loader, own in (
        ("train", data.estimate_dataloader(), train_scope),
        ("validation", data.val_dataloader(), scope),
        ("test", data.test_dataloader(), scope),
    ):
        for batch in loader:
            for number, query in enumerate(batch.instances):
                may = [
                    row
                    for row, passage in enumerate(data.store)
                    if (own == "any" or passage.instance.task == query.task)
                    and not (split == "train" and passage.instance.task == "d")
                    and not (split == "train" and passage.text == query.text)
                ]
                gone = batch.excluded_rows[number].tolist()
                assert gone == [row for row in range(len(data.store)) if row not in may]
                found = batch.candidate_ids[number]
                found = found[found >= 0].tolist()
                assert len(found) == min(6, len(may))
                assert set(found) <= set(may)
                for listed in (batch.relevant_rows, batch.answer_rows):
                    assert listed[number].tolist() == [
                        row for row in may if data.task.matches(query, data.store[row])
                    ]
                seen.add((split, query.task, len(found)))
    assert (("validation", "c", 2) in seen) == (scope == "same_task")
    assert ("test", "d", 6) in seen


def test_a_batch_is_a_copy(tmp_path):
    data = module(tmp_path)
    first, second = (next(iter(data.val_dataloader())) for _ in range(2))
    for name in ("excluded_rows", "relevant_rows", "answer_rows", "candidate_ids"):
        getattr(first, name)[0].fill_(-7)
        assert not (getattr(second, name)[0] == -7).all() or not len(getattr(second, name)[0])
    third = next(iter(data.val_dataloader()))
    assert torch.equal(third.excluded_rows[0], second.excluded_rows[0])


def test_training_on_a_held_out_task_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"10 training queries .* held-out task, first 'train-"):
        module(tmp_path, reader=Tasks(leaking=True))


def test_a_task_without_demonstrations_is_told(tmp_path, caplog):
    module(tmp_path, reader=Tasks(empty=True)).queries("validation")
    assert "2 validation queries may retrieve nothing" in caplog.text
    assert caplog.text.rstrip().endswith("of their task (c)")


def test_scopes_have_entries_of_their_own_in_the_cache(tmp_path, monkeypatch):
    module(tmp_path).queries("test")
    monkeypatch.setattr(BM25, "search", lambda self, request: pytest.fail("searched again"))
    module(tmp_path).queries("test")
    with pytest.raises(pytest.fail.Exception, match="searched again"):
        module(tmp_path, scope="any").queries("test")


def test_limits_are_shared_out_among_the_tasks():
    queries = [Instance(str(n), "x", task="a" if n < 90 else "b") for n in range(100)]
    drawn = subset(queries, fraction=0.2, seed=0)
    assert [sum(i.task == task for i in drawn) for task in "ab"] == [18, 2]
    single = [replace(i, task="") for i in queries]
    one = [i.id for i in subset(single, fraction=0.2, seed=0)]
    assert one != [i.id for i in drawn]


def test_a_large_store_of_many_tasks_keeps_batches_fast():
    size, tasks, count = 20_000, 10, 64
    generator = np.random.default_rng(0)
    task = generator.integers(0, tasks, size)
    outside = [np.flatnonzero(task != number) for number in range(tasks)]
    inside = [np.flatnonzero(task == number) for number in range(tasks)]
    queries = [int(number) for number in generator.integers(0, tasks, count)]
    own = [np.sort(generator.choice(size, 3, replace=False)) for _ in queries]
    ids = np.stack([generator.choice(inside[number], 20, replace=False) for number in queries])
    relevant = [inside[number] for number in queries]
    known = QuerySet(
        tuple(Instance(str(n), "x") for n in range(count)),
        Candidates(ids, np.zeros(ids.shape, dtype=np.float32)),
        relevant,
        [rows.copy() for rows in relevant],
        ScopedRows(own, queries, outside),
    )
    best = float("inf")
    for _ in range(10):
        start = time.process_time()  # and not the clock: other tests run beside this one
        batch = known.batch(range(count))
        best = min(best, time.process_time() - start)
    assert len(batch.excluded_rows[0]) >= len(outside[queries[0]])
    assert best / count < 1e-3  # about 0.2 ms on one core of its own

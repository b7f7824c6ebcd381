"""Which passages a query learns from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticQuestions
from lightning_rag.functional.ranked_choice import choose
from lightning_rag.methods.demonstrations import choose_passages, false_negatives
from lightning_rag.tasks.question_answering import QuestionAnswering

NAN, INF = math.nan, math.inf


@pytest.fixture
def data(three_tasks) -> RagDataModule:
    return three_tasks()


def chosen(batch, scores, size=4, epoch=0, **settings):
    settings = {"positives": 3, "negatives": 16, "seed": 5, "store_size": 30, **settings}
    return choose_passages(batch, scores, size=size, epoch=epoch, **settings)


def test_candidates_by_rank(data) -> None:
    batch = data.queries("train").batch(range(4))
    scores = torch.tensor([[0.6, 0.1, 0.5, 0.2, 0.4, 0.3]] * 4)
    seen = set()
    for epoch in range(6):
        choice = chosen(batch, scores, epoch=epoch)
        numbers = torch.tensor([5 * 1_000_003 + row for row in range(4)])
        columns = choose(scores, epoch + 5, size=4, seeds=numbers)
        assert torch.equal(choice.rows, batch.candidate_ids.gather(1, columns))
        assert torch.equal(choice.teacher, scores.gather(1, columns))
        assert choice.usable.all()
        ids = batch.candidate_ids[0].tolist()
        first, *others = (ids.index(row) for row in choice.rows[0].tolist())
        assert first in (0, 2, 4)
        assert set(others) == {1, 3, 5}
        seen.add(first)
    assert seen == {0, 2, 4}  # every positive has its turn


def test_a_query_with_too_few_is_left_out(data) -> None:
    batch = data.queries("train").batch(range(4))
    scores = torch.arange(24.0).view(4, 6)
    scores[1, 2:], scores[2, 3:], scores[3, 4:] = NAN, -INF, NAN
    choice = chosen(batch, scores)
    # Two scored ones; three, but nothing besides the positives; three and a negative.
    assert choice.usable.tolist() == [True, False, False, True]
    assert choice.rows[1:3].tolist() == [[-1] * 4] * 2
    assert choice.teacher[1:3].tolist() == [[-INF] * 4] * 2
    assert chosen(batch, scores, positives=2).usable.tolist() == [True, False, True, True]


def test_missing_negatives_are_random_ones_that_the_query_may_have(data) -> None:
    """Task one has ten demonstrations: not the query's own, six of them offered, three free."""
    batch = data.queries("train").batch(range(10))
    scores = torch.arange(60.0).view(10, 6)
    draws = set()
    for epoch in range(4):
        choice = chosen(batch, scores, size=6, epoch=epoch)
        for row, rows in enumerate(choice.rows.tolist()):
            assert len(set(rows)) == 6
            offered = set(batch.candidate_ids[row].tolist())
            strangers = [r for r in rows if r not in offered]
            assert len(strangers) == 2  # five negatives, three of them candidates
            assert all(r < 10 and r != row for r in strangers)
            assert choice.teacher[row, -2:].tolist() == [-INF] * 2
            assert choice.teacher[row, :-2].isfinite().all()
        draws.add(str(choice.rows[:, -2:].tolist()))
        again = chosen(batch, scores, size=6, epoch=epoch)
        assert torch.equal(again.rows, choice.rows)
    assert len(draws) > 1
    # Nine places are more than there are: what is left has no passage.
    choice = chosen(batch, scores, size=9)
    assert (~choice.there).sum(dim=1).tolist() == [2] * 10
    assert choice.usable.all()


def test_a_part_of_the_batch_gets_the_same(data) -> None:
    queries = data.queries("train")
    scores = torch.rand(20, 6, generator=torch.Generator().manual_seed(0))
    whole = chosen(queries.batch(range(20)), scores, size=6, epoch=3)
    part = chosen(queries.batch([13, 2]), scores[[13, 2]], size=6, epoch=3)
    assert torch.equal(part.rows, whole.rows[[13, 2]])


def test_false_negatives_of_extraction(data) -> None:
    """Same task and same answer, or the same positive; never a query's own passages."""
    train, store = data.queries("train"), data.store
    rows = torch.tensor([0, 3, 12])
    rows_of = torch.tensor([[8, 1], [8, 0], [11, 15]])
    # Queries 0 and 8 are of one task, and their answers "person: Ada; …" differ by the town.
    found = false_negatives(rows, rows_of, train, store)
    expected = []
    for number, query in enumerate(rows.tolist()):
        for owner in range(3):
            for row in rows_of[owner].tolist():
                asked, shown = train.instances[query], store[row].instance
                same = (asked.task, asked.answers) == (shown.task, shown.answers)
                same = same or row == int(rows_of[number, 0])
                expected.append(same and owner != number)
    assert found.flatten().tolist() == expected
    assert found[0].tolist() == [False, False, True, True, False, False]  # 8 again, and itself
    other_task = dataclasses.replace(train.instances[0], task="NER_two")
    train = dataclasses.replace(train, instances=(other_task, *train.instances[1:]))
    found = false_negatives(rows, rows_of, train, store)
    assert found[0].tolist() == [False, False, True, False, False, False]
    missing = false_negatives(rows, torch.tensor([[8, -1], [-1, -1], [11, -1]]), train, store)
    assert not missing[:, 1].any()


def test_false_negatives_of_question_answering(tmp_path: Path) -> None:
    """Plain passages that hold the answer."""
    data = RagDataModule(
        SyntheticQuestions(train=16, validation=4, test=4),
        QuestionAnswering(),
        BM25(),
        num_candidates=6,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup()
    queries, task = data.queries("train"), data.task
    rows = torch.arange(6)
    # The positive of each is one that holds the answer of the query after it.
    helpful = [int(queries.answers[(row + 1) % 6][0]) for row in range(6)]
    passages = torch.stack([torch.tensor(helpful), queries.batch(range(6)).candidate_ids[:, 3]], 1)
    found = false_negatives(rows, passages, queries, data.store)
    flat = passages.flatten().tolist()
    for query in range(6):
        for column, row in enumerate(flat):
            same = task.matches(queries.instances[query], data.store[row]) or row == helpful[query]
            assert bool(found[query, column]) == (same and column // 2 != query)
    assert found.any(dim=1).all()

"""What is known of a query's candidates: draws, tasks, penalties, agreement, figures."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter

import pytest
import torch

from lightning_rag.errors import UserError
from lightning_rag.methods.preferences import (
    agreement,
    drawn,
    figures,
    off_task,
    penalised,
    summary,
)

NAN, INF = math.nan, math.inf


@pytest.fixture
def batch(three_tasks):
    data = three_tasks(train_scope="any")
    return data.queries("train").batch(range(20))


def test_a_draw_is_of_the_query_and_the_seed_alone(batch) -> None:
    chosen = drawn(batch, 3, 7, at_random=True)
    assert chosen.sum(dim=1).tolist() == [3] * 20
    assert torch.equal(drawn(batch, 3, 7, at_random=True), chosen)
    assert not torch.equal(drawn(batch, 3, 8, at_random=True), chosen)
    assert not torch.equal(chosen, drawn(batch, 3, 7, at_random=False))
    # Every place of the six has its share of the twenty queries' three.
    assert min(chosen.sum(dim=0).tolist()) >= 4


def test_a_draw_in_a_part_of_the_batch_is_the_same(three_tasks) -> None:
    queries = three_tasks(train_scope="any").queries("train")
    whole = drawn(queries.batch(range(20)), 3, 7, at_random=True)
    part = drawn(queries.batch([11, 4]), 3, 7, at_random=True)
    assert torch.equal(whole[[11, 4]], part)


def test_the_best_of_the_first_stage_can_be_drawn(batch) -> None:
    batch.candidate_scores = torch.arange(120.0).view(20, 6)  # the last is best
    batch.candidate_ids[3, 5], batch.candidate_scores[3, 5] = -1, -INF
    chosen = drawn(batch, 2, 0, at_random=False)
    assert chosen[0].tolist() == [False] * 4 + [True] * 2
    assert chosen[3].tolist() == [False] * 3 + [True] * 2 + [False]


@pytest.mark.parametrize("at_random", [True, False])
def test_more_than_there_are(batch, at_random) -> None:
    batch.candidate_ids[2, 1:], batch.candidate_scores[2, 1:] = -1, -INF
    batch.candidate_ids[4], batch.candidate_scores[4] = -1, -INF
    chosen = drawn(batch, 99, 0, at_random=at_random)
    assert torch.equal(chosen, batch.candidate_ids >= 0)
    assert chosen[2].tolist() == [True] + [False] * 5
    assert not chosen[4].any()


def test_off_task(three_tasks) -> None:
    data = three_tasks(train_scope="any")
    batch = data.queries("train").batch(range(20))
    batch.candidate_ids[1, 2] = -1
    other = off_task(batch, data.store)
    assert other.any()
    for row, column in itertools.product(range(20), range(6)):
        passage = int(batch.candidate_ids[row, column])
        tasks = {batch.instances[row].task, data.store[passage].instance.task}
        assert bool(other[row, column]) == (passage >= 0 and len(tasks) == 2)
    within = three_tasks()
    assert not off_task(within.queries("train").batch(range(20)), within.store).any()


def test_penalty() -> None:
    scores = torch.tensor([[-1.0, -2.0, NAN, -3.0], [-1.0, -2.0, -3.0, -4.0]])
    other = torch.tensor([[False, True, True, False], [True, True, False, True]])
    found = penalised(scores, other, 100.0, 2)
    torch.testing.assert_close(
        found, torch.tensor([[-1.0, -102, NAN, -3], [NAN] * 4]), equal_nan=True
    )
    assert torch.equal(penalised(scores, other, 0.0, 2), scores) or scores.isnan().any()
    torch.testing.assert_close(penalised(scores, other, 0.0, 3), scores, equal_nan=True)


def naive_agreement(scores: list[float], wanted: list[float]) -> float:
    """Pair by pair."""
    good = count = 0.0
    for i, j in itertools.combinations(range(len(scores)), 2):
        if all(map(math.isfinite, (scores[i], scores[j], wanted[i], wanted[j]))):
            if wanted[i] == wanted[j]:
                continue
            count += 1
            if scores[i] == scores[j]:
                good += 0.5
            else:
                good += (scores[i] > scores[j]) == (wanted[i] > wanted[j])
    return good / count if count else NAN


def test_agreement_pair_by_pair() -> None:
    torch.manual_seed(0)
    scores, wanted = torch.randint(0, 5, (30, 7)).float(), torch.randint(0, 4, (30, 7)).float()
    wanted[torch.rand(30, 7) < 0.3] = NAN
    wanted[0], wanted[1], scores[2] = NAN, 1.0, -INF
    expected = [
        naive_agreement(*pair) for pair in zip(scores.tolist(), wanted.tolist(), strict=True)
    ]
    found = agreement(scores, wanted)
    torch.testing.assert_close(found, torch.tensor(expected), equal_nan=True)
    assert found[:3].isnan().all()
    assert agreement(wanted[5:], wanted[5:]).nan_to_num(1).tolist() == [1.0] * 25
    assert agreement(-wanted[5:], wanted[5:]).nan_to_num(0).tolist() == [0.0] * 25


def test_figures_and_their_means(caplog, three_tasks) -> None:
    scores = torch.tensor(
        [[-1.0, -2.0, -3.0], [-5.0, -4.0, NAN], [NAN, -1.0, -2.0], [NAN, NAN, NAN]]
    )
    other = torch.tensor([[False, False, True]] + [[False] * 3] * 3)
    first_stage = torch.tensor([[3.0, 2.0, 1.0]] * 4)
    usable = torch.tensor([True, True, False, False])
    rows = figures(scores, other, first_stage, usable)
    plain = {name.removeprefix("figures/"): values.tolist() for name, values in rows.items()}
    assert plain["mean"] == pytest.approx([-1.5, -4.5, -1.5, NAN], nan_ok=True)
    assert plain["best"] == pytest.approx([-1, -4, -1, NAN], nan_ok=True)
    assert plain["first_is_best"] == pytest.approx([1, 0, NAN, NAN], nan_ok=True)
    assert plain["off_task"] == pytest.approx([1 / 3, 0, 0, NAN], nan_ok=True)
    train = three_tasks().splits.train
    with caplog.at_level(logging.WARNING):
        found = summary({"preference": scores, **rows}, train[:4], 3)
    assert found == pytest.approx(
        {"mean": -2.5, "best": -2.0, "first_is_best": 0.5, "off_task": 1 / 9, "left_out": 0.5}
    )
    assert f"2 of 4 queries are left out of this phase: {'they have fewer than 3'}" in caplog.text
    assert f"({train[2].id}, {train[3].id})" in caplog.text
    caplog.clear()
    rows["figures/left_out"].zero_()
    summary(rows, train[:4], 3)
    assert not caplog.records


def test_the_data_are_as_the_tests_think(three_tasks) -> None:
    data = three_tasks()
    assert Counter(p.instance.task for p in data.store) == dict.fromkeys(
        ("NER_one", "NER_two", "NER_held"), 10
    )
    assert {i.task for i in data.splits.train} == {"NER_one", "NER_two"}


def test_a_phase_without_a_query_to_learn_from_is_an_error(three_tasks) -> None:
    train = three_tasks().splits.train[:2]
    scores, nothing = torch.full((2, 3), NAN), torch.zeros(2, 3, dtype=torch.bool)
    rows = figures(scores, nothing, scores, torch.tensor([False, False]))
    with pytest.raises(UserError, match="all 2 training queries are left out: none has 3 scored"):
        summary(rows, train, 3)
    one = figures(scores, nothing, scores, torch.tensor([False, True]))
    assert summary(one, train, 3)["left_out"] == 0.5

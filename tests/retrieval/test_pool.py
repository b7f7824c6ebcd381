"""Choosing among candidates, against plain loops."""

from __future__ import annotations

import pytest
import torch

from lightning_rag.retrieval.pool import (
    best_columns,
    best_rows,
    listed,
    random_columns,
    shared_pool,
    take,
)

SCORES = torch.tensor([[0.1, 0.9, -torch.inf, 0.5], [-torch.inf, -torch.inf, 0.2, -torch.inf]])


def test_listed_says_which_rows_are_in_a_list() -> None:
    rows = torch.tensor([[3, -1, 5], [3, 4, 5]])
    lists = [torch.tensor([5, 9]), torch.empty(0, dtype=torch.long)]
    assert listed(rows, lists).tolist() == [[False, False, True], [False] * 3]
    with pytest.raises(ValueError, match="zip"):
        listed(rows, lists[:1])


def test_best_columns_are_padded() -> None:
    assert best_columns(SCORES, 2).tolist() == [[1, 3], [2, -1]]
    assert best_columns(SCORES, 6).tolist() == [[1, 3, 0, -1, -1, -1], [2, -1, -1, -1, -1, -1]]


def test_random_columns_are_allowed_distinct_and_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(40, 9, generator=generator)
    scores[:, 4] = -torch.inf
    drawn = random_columns(scores, 3, range(40))
    for number, columns in enumerate(drawn.tolist()):
        assert len(set(columns)) == 3
        assert 4 not in columns
        values = [float(scores[number, column]) for column in columns]
        assert values == sorted(values, reverse=True)
    counts = torch.bincount(drawn.flatten(), minlength=9)
    assert (counts[[0, 1, 2, 3, 5, 6, 7, 8]] > 0).all()


def test_a_random_draw_is_the_query_s_own() -> None:
    scores = torch.zeros(3, 20)
    both = random_columns(scores, 4, [7, 8, 9])
    alone = random_columns(scores[:1], 4, [8])
    assert torch.equal(both[1].sort().values, alone[0].sort().values)
    assert random_columns(SCORES, 2, [0, 1])[1].tolist() == [2, -1]


def test_a_shared_pool_takes_first_choices_before_second_ones() -> None:
    ranked = torch.tensor([[4, 1, 0], [4, 2, -1], [6, 4, 3]])
    pool = shared_pool(ranked, total=10, size=5, replaced=0.0).tolist()
    assert pool == [4, 6, 1, 2, 0]
    pool = shared_pool(ranked, total=10, size=6, replaced=0.5).tolist()
    assert pool[:3] == [4, 6, 1]
    assert len(set(pool)) == 6
    assert set(pool) <= set(range(10))


def test_a_shared_pool_is_filled_at_random() -> None:
    nothing = torch.zeros(2, 0, dtype=torch.long)
    torch.manual_seed(0)
    pools = {tuple(shared_pool(nothing, total=30, size=4, replaced=0.0).tolist()) for _ in range(9)}
    assert len(pools) == 9
    assert sorted(shared_pool(nothing, total=4, size=4, replaced=0.0).tolist()) == [0, 1, 2, 3]
    few = torch.tensor([[2, -1, -1]])  # fewer than wanted are ranked
    assert shared_pool(few, total=8, size=4, replaced=0.0).unique().numel() == 4


@pytest.mark.parametrize("shared", [True, False])
def test_take(shared: bool) -> None:
    vectors = torch.randn(5, 2, 3) if shared else torch.randn(4, 5, 2, 3)
    columns = torch.tensor([[0, 4], [2, -1], [-1, -1], [3, 3]])
    taken = take(vectors, columns)
    for query in range(4):
        for place, column in enumerate(columns[query].tolist()):
            own = vectors if shared else vectors[query]
            expected = own[column] if column >= 0 else torch.zeros(2, 3)
            assert torch.equal(taken[query, place], expected)


def test_best_rows_of_a_whole_index() -> None:
    generator = torch.Generator().manual_seed(0)
    queries, index = (torch.randn(n, 4, generator=generator) for n in (3, 9))
    excluded = [torch.tensor([], dtype=torch.long), torch.tensor([2, 5]), torch.arange(1, 9)]
    rows, scores = best_rows(queries, index, excluded, 4)
    for query in range(3):
        own = [row for row in range(9) if row not in excluded[query].tolist()]
        values = {row: float(queries[query] @ index[row]) for row in own}
        order = sorted(own, key=values.__getitem__, reverse=True)[:4]
        padding = 4 - len(order)
        assert rows[query].tolist() == order + [-1] * padding
        expected = [values[row] for row in order] + [-torch.inf] * padding
        assert scores[query].tolist() == pytest.approx(expected, abs=1e-5)
    rows, _ = best_rows(queries, index, excluded, 99)
    assert rows.shape == (3, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, rounded = best_rows(queries, index, excluded, 4)
    assert torch.equal(rounded, scores)

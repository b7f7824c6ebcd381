"""The order of the training queries: complete, and a function of seed and epoch."""

from __future__ import annotations

import pytest

from lightning_rag.data.sampler import EpochOrder

LENGTHS = [(7 * row) % 50 for row in range(103)]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("batch_size", [1, 8, 103, 200])
def test_every_query_once(lengths: list[int] | None, batch_size: int) -> None:
    order = EpochOrder(103, seed=3, batch_size=batch_size, lengths=lengths)
    assert len(order) == 103
    for epoch in range(3):
        order.set_epoch(epoch)
        assert sorted(order) == list(range(103))


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_depends_on_seed_and_epoch_alone(lengths: list[int] | None) -> None:
    def draw(seed: int, epoch: int) -> list[int]:
        order = EpochOrder(103, seed=seed, batch_size=8, lengths=lengths)
        order.set_epoch(epoch)
        return list(order)

    order = EpochOrder(103, seed=1, batch_size=8, lengths=lengths)
    first = list(order)
    assert list(order) == first  # reading it twice changes nothing
    order.set_epoch(4)
    assert list(order) == draw(1, 4)
    drawn = {tuple(draw(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(drawn) == 9


def test_batches_hold_similar_lengths() -> None:
    order = list(EpochOrder(103, seed=0, batch_size=8, lengths=LENGTHS))
    shuffled = list(EpochOrder(103, seed=0, batch_size=8))

    def padding(rows: list[int]) -> int:
        batches = [[LENGTHS[r] for r in rows[i : i + 8]] for i in range(0, 103, 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(order) < padding(shuffled) / 2


def test_the_short_batch_is_last() -> None:
    """The loader cuts batches by counting: a short one before the end would shift the others."""
    order = EpochOrder(20, seed=0, batch_size=8, lengths=LENGTHS[:20], window=1)
    for epoch in range(5):
        order.set_epoch(epoch)
        rows = list(order)
        for start in (0, 8):
            lengths = [LENGTHS[row] for row in rows[start : start + 8]]
            assert lengths == sorted(lengths)

"""Means and texts of two processes of gloo, against those of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_rag.functional.processes import (
    own_slice,
    process_count,
    query_mean,
    shared_mean,
    shared_ratio,
    summed,
)

SCRIPT = Path(__file__).with_name("mean_process.py")
WORLD = 2
# An even number of queries, unequal shares, and a process without any.
LISTS = [[1.0, 2.0, 4.0, 9.0], [3.0, 1.0, 8.0, 6.0, 7.0], [6.0], [5.0]]


@pytest.fixture(scope="module")
def found(in_processes, tmp_path_factory):
    """What each process found."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "values.json").write_text(json.dumps(LISTS))
    in_processes(SCRIPT, [(folder, rank, WORLD) for rank in range(WORLD)])
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("number", range(len(LISTS)), ids=map(str, LISTS))
def test_means_and_gradients_are_those_of_all_queries(found, number):
    mean = sum(LISTS[number]) / len(LISTS[number])
    even = [value for value in LISTS[number] if value % 2 == 0]
    for rank in range(WORLD):
        for how in ("alone", "together"):
            got = found[rank][how][number]
            # d/dw of mean(v) w^2 at w = 2
            assert got["gradient, mean, ratio"] == pytest.approx([4 * mean, 4 * mean, 2 * mean])
            want = sum(even) / len(even) if even else 0
            assert got["even"] == pytest.approx([want, len(even)])


def test_what_is_exchanged(found):
    for rank in range(WORLD):
        for got in found[rank]["together"]:
            assert got["first"] == [0, 7]
            assert got["texts"] == ["0: é\n", "1: é\n1: é\n"]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_equal_and_whole(size, world):
    queries = list(range(size))
    shares = [queries[own_slice(size, rank, world)] for rank in range(world)]
    assert [query for share in shares for query in share] == queries
    lengths = [len(share) for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_needs_no_others():
    values = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    assert process_count() == 1
    assert shared_mean(values) == values.mean()
    assert shared_ratio(values.sum(), 3) == 3
    nothing = shared_mean(values, counts=False)
    assert nothing == 0
    nothing.backward()
    assert values.grad.tolist() == [0, 0, 0]
    assert shared_mean(values[:0]) == 0
    assert query_mean(torch.tensor([torch.nan])) == (0, 0)
    assert summed(values).tolist() == [1, 2, 6]
    assert not summed(values).requires_grad

import numpy as np
import pytest
import torch

from lightning_rag.comparison.rankings import (
    MOVES,
    collapse,
    first_hit,
    moved,
    overlap_at_k,
    overlaps,
    rank_biased_overlap,
    recall_at_k,
    reciprocal_rank,
    success_at_k,
)
from lightning_rag.metrics import retrieval


def naive_overlaps(one, other):
    depths = range(1, max(len(one), len(other)) + 1)
    return [len(set(one[:d]) & set(other[:d])) for d in depths]


def naive_rbo(one, other, p):
    """The definition, equation 4, with the agreement carried on as equation 32 assumes."""
    short, long = sorted((one, other), key=len)
    s, n = len(short), len(long)
    agreement = []
    for d in range(1, n + 1):
        common = len(set(short[:d]) & set(long[:d]))
        if d > s:
            common += len(set(short) & set(long[:s])) * (d - s) / s
        agreement.append(common / d)
    return (1 - p) * sum(
        p ** (d - 1) * (agreement[d - 1] if d <= n else agreement[-1]) for d in range(1, 4000)
    )


def random_rankings(seed, one, other, pool=30):
    draw = np.random.default_rng(seed)
    return [[str(i) for i in draw.permutation(pool)[:size]] for size in (one, other)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(10, 10), (3, 20), (20, 3), (1, 1), (0, 4), (30, 30)])
def test_overlaps_are_those_of_sets(seed, sizes):
    one, other = random_rankings(seed, *sizes)
    assert overlaps(one, other) == naive_overlaps(one, other)
    assert overlaps(one, other) == overlaps(other, one)


def test_overlaps_refuse_a_passage_twice():
    for pair in ((["a", "a"], ["b"]), (["b"], ["a", "a"])):
        with pytest.raises(ValueError, match="an id twice"):
            overlaps(*pair)


def test_overlap_at_k():
    counts = overlaps(["a", "b", "c", "d"], ["b", "a", "x"])
    assert [overlap_at_k(counts, k) for k in (1, 2, 3, 4, 9)] == [0, 1, 2 / 3, 2 / 4, 2 / 4]


@pytest.mark.parametrize(("counts", "k"), [([1], 0), ([], 3)])
def test_overlap_at_k_refuses_what_has_no_ranks(counts, k):
    with pytest.raises(ValueError, match=f"got {k}"):
        overlap_at_k(counts, k)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("sizes", [(10, 10), (3, 20), (20, 3), (1, 1), (1, 30), (30, 30)])
def test_rbo_is_the_infinite_sum(sizes, p):
    one, other = random_rankings(sum(sizes), *sizes)
    got = rank_biased_overlap(overlaps(one, other), min(sizes), p)
    assert got == pytest.approx(naive_rbo(one, other, p), abs=1e-9)


def test_rbo_of_equal_and_of_strange_rankings():
    one, _ = random_rankings(0, 20, 0)
    assert rank_biased_overlap(overlaps(one, one), 20) == pytest.approx(1)
    assert rank_biased_overlap(overlaps(one, ["x", "y"]), 2) == 0
    # A beginning of a ranking agrees with it as far as one can know.
    assert rank_biased_overlap(overlaps(one, one[:5]), 5) == pytest.approx(1)


def test_rbo_weighs_the_top_most():
    one = list("abcdefgh")
    top, bottom = list("bacdefgh"), list("abcdefhg")
    values = [rank_biased_overlap(overlaps(one, other), 8) for other in (top, bottom)]
    assert values[0] < values[1] < 1


@pytest.mark.parametrize(("shorter", "p"), [(0, 0.9), (4, 0.9), (2, 0.0), (2, 1.0)])
def test_rbo_refuses_what_it_cannot_weigh(shorter, p):
    with pytest.raises(ValueError, match="expected a"):
        rank_biased_overlap([1, 2, 3], shorter, p)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_the_metrics(seed):
    draw = np.random.default_rng(seed)
    flags = (draw.random((40, 12)) < 0.15).astype(int)
    counts = flags.sum(1) + draw.integers(0, 4, 40)
    scores = torch.arange(12, 0, -1).float().expand(40, 12)
    relevance, relevant = torch.tensor(flags), torch.tensor(counts)
    rows = flags.tolist()
    assert [reciprocal_rank(r) for r in rows] == pytest.approx(
        retrieval.reciprocal_rank(scores, relevance).tolist()
    )
    for k in (1, 3, 50):
        assert [success_at_k(r, k) for r in rows] == pytest.approx(
            retrieval.success_at_k(scores, relevance, k).tolist()
        )
        assert [recall_at_k(r, int(n), k) for r, n in zip(rows, counts, strict=True)] == (
            pytest.approx(retrieval.recall_at_k(scores, relevance, relevant, k).tolist())
        )


def test_first_hit():
    assert [first_hit(f) for f in ([0, 0, 1, 1], [1], [0], [])] == [3, 1, None, None]


@pytest.mark.parametrize(
    ("before", "after", "move"),
    [
        (5, 2, "up"),
        (2, 5, "down"),
        (1, 1, "same"),
        (None, 9, "found"),
        (9, None, "lost"),
        (None, None, "neither"),
    ],
)
def test_moves(before, after, move):
    assert moved(before, after) == move
    assert move in MOVES


def test_collapse_counts_passages_and_the_favourite_s_queries():
    assert collapse([["a", "b"], ["a", "c"], ["d"], []]) == (4, 0.5)
    assert collapse([["a"], ["a"]]) == (1, 1.0)
    assert collapse([[], []]) == (0, 0.0)
    with pytest.raises(ValueError, match="one query or more"):
        collapse([])

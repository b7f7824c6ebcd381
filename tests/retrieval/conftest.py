import itertools

import pytest
import torch

from lightning_rag.retrieval.selector import Offer
from lightning_rag.types import Rendered

TEXT = "the fox jumps over a lazy dog and alba borks cimo while delo borks fenu"
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def corpus():
    return [TEXT, " ".join(reversed(WORDS))] * 3


@pytest.fixture
def offer():
    """Three queries with 4, 1 and 3 candidates; one passage stands in two lists."""
    passages = [[0, 1, 2, 3], [4], [2, 5, 6]]
    return Offer(
        [Rendered("who borks"), Rendered("the fox"), Rendered("over the dog")],
        [[Rendered(" ".join(WORDS[2 * i : 2 * i + 3])) for i in row] for row in passages],
        size=4,
    )


@pytest.fixture(scope="session")
def all_lists():
    """Every ordered list of K (or all) of each query's candidates, (B, S, K), and which are real.

    Queries with fewer lists repeat their last one, so that the lists of all make one tensor.
    """

    def enumerate_lists(offer, k):
        queries = []
        for passages in offer.passages:
            length = min(k, len(passages))
            lists = itertools.permutations(range(len(passages)), length)
            queries.append([[*places] + [-1] * (k - length) for places in lists])
        most = max(map(len, queries))
        real = torch.tensor([[i < len(lists) for i in range(most)] for lists in queries])
        filled = [lists + lists[-1:] * (most - len(lists)) for lists in queries]
        return torch.tensor(filled), real

    return enumerate_lists


@pytest.fixture(scope="session")
def sums_to_one(all_lists):
    """Whether the probabilities of all lists of each query add up to 1."""

    def check(selector, offer):
        positions, real = all_lists(offer, selector.k)
        with torch.no_grad():
            log_prob = selector.log_prob(offer, positions)
        assert log_prob.shape == real.shape
        total = log_prob.exp().masked_fill(~real, 0).sum(dim=1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-4, rtol=0)

    return check


@pytest.fixture(scope="session")
def frequencies_agree(all_lists):
    """Whether samples come as often as `expected` (B, L) says of all lists (B, L, K)."""

    def check(sampled, offer, expected):
        count, k = sampled.positions.shape[1:]
        positions, real = all_lists(offer, k)
        same = (sampled.positions[:, :, None] == positions[:, None]).all(dim=-1)  # (B, S, L)
        assert (same & real[:, None]).any(dim=-1).all(), "a list that cannot be"
        share = (same & real[:, None]).float().mean(dim=1)  # (B, L)
        expected = expected.masked_fill(~real, 0)
        error = (expected * (1 - expected) / count).sqrt()
        assert (share[expected < 1e-9] == 0).all()
        assert ((share - expected).abs() <= 5 * error + 1e-6).all(), (share, expected)

    return check

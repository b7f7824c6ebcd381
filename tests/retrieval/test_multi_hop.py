import pytest
import torch

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.errors import UserError
from lightning_rag.retrieval.multi_hop import MultiHopSelector
from lightning_rag.retrieval.selector import Offer
from lightning_rag.types import Rendered


@pytest.fixture
def build(corpus):
    def make(k=2, temperature=0.1, dropout=0.0, proposal_temperature=1.0, top_p=1.0):
        tiny = TinyConfig(vocab_size=300, hidden_size=16, heads=2, layers=1, dropout=dropout)
        torch.manual_seed(0)
        selector = MultiHopSelector(
            EncoderConfig(tiny=tiny), corpus, k, temperature, proposal_temperature, top_p
        )
        for weight in selector.parameters():  # larger than at the start, so that scores differ
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.4)
        return selector

    return make


def naive_step(selector, offer, query, chosen):
    """(N,): scores of one query's candidates after what was chosen, by plain calls."""
    passages = offer.passages[query]
    text = " ".join([offer.queries[query].text, *(passages[c].text for c in chosen)])
    (vector,) = selector.encoder([Rendered(text)])
    scores = torch.full((offer.size,), -torch.inf)
    for column, passage in enumerate(passages):
        if column not in chosen:
            (other,) = selector.encoder([passage])
            scores[column] = vector @ other / selector.temperature
    return scores


def naive_log_prob(selector, offer, query, places, temperature=1.0):
    chosen, total = [], torch.zeros(())
    for place in places:
        if place >= 0:
            scores = naive_step(selector, offer, query, chosen) / temperature
            total = total + scores.log_softmax(-1)[place]
            chosen.append(place)
    return total


def test_log_prob_equals_a_loop_with_its_gradient(build, offer):
    selector = build(k=3)
    positions = torch.tensor(
        [[[2, 0, 1], [2, 0, 3], [1, -1, -1]], [[0, -1, -1]] * 3, [[1, 2, 0], [0, 1, 2], [-1] * 3]]
    )
    got = selector.log_prob(offer, positions)
    expected = torch.stack(
        [
            naive_log_prob(selector, offer, query, places)
            for query, lists in enumerate(positions.tolist())
            for places in lists
        ]
    ).view(3, 3)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert got[1].tolist() == [0, 0, 0]  # one candidate: nothing to choose
    parameters = [p for p in selector.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(got.square().sum(), parameters, allow_unused=True)
    naive = torch.autograd.grad(expected.square().sum(), parameters, allow_unused=True)
    assert any(one is not None and one.abs().max() > 1e-3 for one in gradients)
    for a, b in zip(gradients, naive, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_a_choice_depends_on_those_before(build, offer):
    selector = build()
    positions = torch.tensor([[[0, 2], [1, 2], [3, 2]]])
    first = torch.tensor([[[0], [1], [3]]])
    one = Offer(offer.queries[:1], offer.passages[:1], 4)
    with torch.no_grad():
        second = selector.log_prob(one, positions) - selector.log_prob(one, first)
        # Plackett-Luce: the odds of two candidates are the same whatever came before.
        other = torch.tensor([[[0, 1], [3, 1]]])
        odds = second[0, [0, 2]] - (
            selector.log_prob(one, other) - selector.log_prob(one, first[:, [0, 2]])
        )
    assert abs(float(odds[0, 0] - odds[0, 1])) > 5e-3  # rounding: 1e-5


def test_probabilities_sum_to_one(build, offer, sums_to_one):
    for k in (1, 2, 4):
        sums_to_one(build(k=k), offer)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_samples(build, offer, all_lists, frequencies_agree, temperature, top_p):
    selector = build(proposal_temperature=temperature, top_p=top_p)
    torch.manual_seed(1)
    sampled = selector.sample(offer, 4000)
    assert sampled.positions.shape == (3, 4000, 2)
    assert sampled.valid.all()
    with torch.no_grad():
        again = selector.log_prob(offer, sampled.positions)
    torch.testing.assert_close(sampled.log_prob, again, atol=1e-4, rtol=1e-4)
    assert sampled.positions[1, 0].tolist() == [0, -1]
    if top_p == 1:
        positions, _ = all_lists(offer, 2)
        expected = torch.stack(
            [
                naive_log_prob(selector, offer, query, places, temperature)
                for query, lists in enumerate(positions.tolist())
                for places in lists
            ]
        ).view(positions.shape[:2])
        expected = expected.detach()
        frequencies_agree(sampled, offer, expected.exp())
        same = (sampled.positions[:, :, None] == positions[:, None]).all(dim=-1)  # (B, S, L)
        number = same.float().argmax(dim=-1)  # (B, S)
        torch.testing.assert_close(
            sampled.log_proposal, expected.gather(1, number), atol=1e-4, rtol=1e-4
        )


def test_rank_is_greedy(build, offer):
    selector = build(k=3)
    ranks = selector.rank(offer)
    assert not ranks.requires_grad
    for query, passages in enumerate(offer.passages):
        chosen = []
        for _ in range(min(3, len(passages))):
            chosen.append(int(naive_step(selector, offer, query, chosen).argmax()))
        assert ranks[query].argsort(descending=True)[: len(chosen)].tolist() == chosen
        assert (ranks[query, len(passages) :] == -torch.inf).all()
        assert ranks[query, : len(passages)].isfinite().all()


def test_nothing_to_choose_from(build, offer):
    selector = build()
    empty = Offer(offer.queries[:2], [[], []], 3)
    sampled = selector.sample(empty, 2)
    assert sampled.positions.tolist() == [[[-1, -1]] * 2] * 2
    assert sampled.log_prob.tolist() == sampled.log_proposal.tolist() == [[0, 0]] * 2
    assert (selector.rank(empty) == -torch.inf).all()
    assert selector.log_prob(empty, sampled.positions).tolist() == [[0, 0]] * 2


def test_what_was_read_before_is_read_once(build, offer):
    """Equal passages, and equal beginnings of lists, go through the encoder once."""
    selector = build()
    lists = torch.tensor([[[0, 1], [0, 2], [0, 3]]])
    one = Offer(offer.queries[:1], offer.passages[:1], 4)
    selector.log_prob(one, lists[:, :1])
    once = selector.tokens
    selector.log_prob(one, lists)
    assert selector.tokens == 2 * once


def test_bad_temperature(corpus):
    with pytest.raises(UserError, match="temperature must be above 0, got 0"):
        MultiHopSelector(EncoderConfig(), corpus, 2, 0)

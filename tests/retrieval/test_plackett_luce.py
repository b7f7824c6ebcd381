import pytest
import torch

from lightning_rag.backbones.config import EncoderConfig, TinyConfig
from lightning_rag.errors import UserError
from lightning_rag.functional.permutation import plackett_luce_log_prob
from lightning_rag.retrieval.plackett_luce import PlackettLuceSelector
from lightning_rag.retrieval.selector import Offer
from lightning_rag.types import Rendered


@pytest.fixture(params=["bi-encoder", "cross-encoder"])
def scorer(request):
    return request.param


@pytest.fixture
def build(corpus):
    def make(scorer, k=2, temperature=None, dropout=0.0, proposal_temperature=1.0, top_p=1.0):
        tiny = TinyConfig(vocab_size=300, hidden_size=16, heads=2, layers=1, dropout=dropout)
        config = EncoderConfig(tiny=tiny)
        if temperature is None:  # unit vectors have scores that are close together
            temperature = 0.1 if scorer == "bi-encoder" else 0.7
        torch.manual_seed(0)
        selector = PlackettLuceSelector(
            scorer, config, corpus, k, temperature, proposal_temperature, top_p
        )
        for weight in selector.parameters():  # larger than at the start, so that scores differ
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.4)
        return selector

    return make


def naive_scores(selector, offer):
    """Each pair on its own, by the scorer's plain call."""
    rows = []
    for query, passages in zip(offer.queries, offer.passages, strict=True):
        row = []
        for passage in passages:
            if hasattr(selector.scorer, "dimension"):
                row.append((selector.scorer([query]) @ selector.scorer([passage]).T)[0, 0])
            else:
                row.append(selector.scorer([query], [passage])[0])
        row += [torch.tensor(-torch.inf)] * (offer.size - len(row))
        rows.append(torch.stack(row))
    return torch.stack(rows) / selector.temperature


def test_scores_equal_a_loop_and_rank_by_them(build, scorer, offer):
    selector = build(scorer)
    scores = selector.scores(offer)
    expected = naive_scores(selector, offer)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    assert scores[0].std() > 0.05
    ranks = selector.rank(offer)
    assert not ranks.requires_grad
    torch.testing.assert_close(ranks, expected.detach(), atol=1e-4, rtol=1e-4)
    assert (ranks == -torch.inf).tolist() == [
        [False] * 4,
        [False] + [True] * 3,
        [False] * 3 + [True],
    ]


def test_equal_passages_are_encoded_once(build, offer):
    selector = build("bi-encoder")
    selector.rank(offer)
    once = selector.tokens
    twice = Offer(offer.queries * 2, offer.passages * 2, 4)
    selector.rank(twice)
    queries = build("bi-encoder").scorer
    queries(offer.queries)
    assert selector.tokens - once == once + queries.tokens


def test_equal_texts_with_other_spans_are_not_equal(build):
    selector = build("bi-encoder")
    selector.scorer.config.max_length = 8
    text = "the fox jumps over a lazy dog and alba"
    passages = [Rendered(text), Rendered(text, {"tail": (34, 38)})]
    scores = selector.rank(Offer([Rendered("alba")], [passages], 2))
    assert selector.truncated == 2
    assert scores[0, 0] != scores[0, 1]


def test_probabilities_sum_to_one(build, scorer, offer, sums_to_one):
    for k in (1, 2, 4):
        sums_to_one(build(scorer, k=k), offer)


def test_log_prob_is_plackett_luce_with_gradient(build, scorer, offer):
    selector = build(scorer)
    positions = torch.tensor([[[2, 0], [1, -1]], [[0, -1], [-1, 0]], [[1, 2], [0, 1]]])
    got = selector.log_prob(offer, positions)
    expected = plackett_luce_log_prob(naive_scores(selector, offer)[:, None], positions)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert got[1].tolist() == [0, 0]  # one candidate: nothing to choose
    weights = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.5, -0.5]])
    parameters = list(selector.parameters())
    gradients = torch.autograd.grad((weights * got).sum(), parameters, allow_unused=True)
    naive = torch.autograd.grad((weights * expected).sum(), parameters, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in gradients)
    for a, b in zip(gradients, naive, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def naive_step(logits, top_p):
    """(N,): log-probabilities of a choice among the most probable candidates."""
    probability = logits.softmax(-1)
    kept = torch.zeros_like(probability)
    for i in probability.argsort(descending=True):
        if kept.sum() < top_p:
            kept[i] = probability[i]
    return (kept / kept.sum()).log()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_samples(build, scorer, offer, all_lists, frequencies_agree, temperature, top_p):
    selector = build(scorer, proposal_temperature=temperature, top_p=top_p)
    torch.manual_seed(1)
    sampled = selector.sample(offer, 4000)
    assert sampled.positions.shape == (3, 4000, 2)
    assert sampled.valid.all()
    assert not sampled.log_prob.requires_grad
    with torch.no_grad():
        again = selector.log_prob(offer, sampled.positions)
    torch.testing.assert_close(sampled.log_prob, again, atol=1e-5, rtol=1e-5)
    # The proposal by enumeration: choice by choice over the scores that are left.
    positions, real = all_lists(offer, 2)
    expected = torch.zeros(real.shape)
    scores = naive_scores(selector, offer).detach()
    for b, n in real.nonzero().tolist():
        left = scores[b].clone()
        for place in positions[b, n][positions[b, n] >= 0].tolist():
            step = naive_step(left / temperature, top_p)
            expected[b, n] += step[place]
            left[place] = -torch.inf
    total = expected.exp().masked_fill(~real, 0).sum(dim=1)
    torch.testing.assert_close(total, torch.ones(3))
    frequencies_agree(sampled, offer, expected.exp())
    same = (sampled.positions[:, :, None] == positions[:, None]).all(dim=-1)  # (B, S, L)
    first = same.float().argmax(dim=-1)
    torch.testing.assert_close(
        sampled.log_proposal, expected.gather(1, first), atol=1e-4, rtol=1e-4
    )
    assert (sampled.log_proposal == sampled.log_prob).all() == (temperature == top_p == 1)


def test_fewer_candidates_than_k(build, scorer, offer, sums_to_one):
    selector = build(scorer, k=3)
    sampled = selector.sample(offer, 5)
    assert (sampled.positions[0] >= 0).all()
    assert sampled.positions[1].tolist() == [[0, -1, -1]] * 5
    assert sampled.log_prob[1].tolist() == sampled.log_proposal[1].tolist() == [0] * 5
    assert sampled.positions[2].sort(dim=-1).values.tolist() == [[0, 1, 2]] * 5
    empty = Offer(offer.queries[:2], [[], offer.passages[0]], 4)
    sampled = selector.sample(empty, 2)
    assert sampled.positions[0].tolist() == [[-1] * 3] * 2
    assert sampled.log_prob[0].tolist() == [0, 0]
    nothing = Offer(offer.queries[:1], [[]], 4)
    assert selector.rank(nothing).tolist() == [[-torch.inf] * 4]


def test_sampling_leaves_the_mode_and_has_no_dropout(build, scorer, offer):
    selector = build(scorer, dropout=0.5).train()
    sampled = selector.sample(offer, 2)
    ranks = [selector.rank(offer) for _ in range(2)]
    assert selector.training
    assert torch.equal(*ranks)
    selector.eval()
    again = selector.log_prob(offer, sampled.positions)
    torch.testing.assert_close(sampled.log_prob, again.detach(), atol=1e-5, rtol=1e-5)


def test_sampling_follows_the_seed(build, scorer, offer):
    selector = build(scorer)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(selector.sample(offer, 20).positions)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "colbert"}, "scorer must be 'bi-encoder' or 'cross-encoder', got 'colbert'"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"proposal_temperature": -1.0}, "proposal_temperature must be above 0, got -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
    ],
)
def test_bad_settings(build, settings, message):
    with pytest.raises(UserError, match=message):
        build(**{"scorer": "bi-encoder", **settings})

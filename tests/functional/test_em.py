"""DRO's EM on tables (arXiv 2505.03075, Eqs. 2 to 13 and 20), where everything can be enumerated.

The selector is a free categorical distribution over the ordered lists of each query, the generator
a free categorical distribution over the answers of each list. Both maximisation steps then have a
closed form: weighted counts. With the exact posterior an iteration never lowers p(y|x), as Eq. 20
says; with weights from a few samples it does at times, because the bound is then no longer tight.
A list that was not drawn even loses its probability for good, so that p(y|x) may end at 0.
"""

import itertools

import pytest
import torch

from lightning_rag.functional.permutation import (
    importance_weights,
    plackett_luce_log_prob,
    sample_plackett_luce,
)

LISTS = list(itertools.permutations(range(3), 2))  # the six ordered lists of two of three
ANSWERS = 4
QUERIES = 3


def tables(trials, seed):
    """Random tables for `trials` experiments at once, float64.

    Returns:
        log p(z|x) (trials, QUERIES, 6), log p(y|z) (trials, 6, ANSWERS), and 8 records of each
        experiment: their queries and answers, (trials, 8).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        noise = torch.randn(*size, dtype=torch.float64, generator=generator)
        return (1.5 * noise).log_softmax(-1)

    queries = torch.randint(QUERIES, (trials, 8), generator=generator)
    answers = torch.randint(ANSWERS, (trials, 8), generator=generator)
    return draw(trials, QUERIES, 6), draw(trials, 6, ANSWERS), queries, answers


def records(selector, generator, queries, answers):
    """log p(z|x) and log p(y|z) of every record and list: two of (trials, 8, 6)."""
    prior = selector.gather(1, queries.unsqueeze(-1).expand(-1, -1, 6))
    likelihood = generator.transpose(1, 2).gather(1, answers.unsqueeze(-1).expand(-1, -1, 6))
    return prior, likelihood


def marginal(selector, generator, queries, answers):
    """Sum over the records of log p(y|x), Eq. 2: (trials,)."""
    prior, likelihood = records(selector, generator, queries, answers)
    return (prior + likelihood).logsumexp(-1).sum(-1)


def exact(prior, likelihood):
    """Posterior of each list: weights over all lists, each once, with their prior."""
    return importance_weights(likelihood, log_prior=prior)


def sampled(size):
    """The estimate of Eq. 19 from `size` lists of each record."""
    generator = torch.Generator().manual_seed(7)

    def estimate(prior, likelihood):
        # A categorical distribution is a list of one.
        drawn = sample_plackett_luce(prior, 1, size, generator=generator).squeeze(-1)
        weights = importance_weights(likelihood.gather(-1, drawn))
        return torch.zeros_like(prior).scatter_add(-1, drawn, weights)

    return estimate


def maximise(table, rows, columns, weights):
    """Table (trials, R, C) of the largest sum over records and lists of weight log p(column|row).

    A row that no weight fell on stays as it was. rows, columns: (trials, 8, 6).
    """
    trial = torch.arange(len(table)).view(-1, 1, 1)
    counts = torch.zeros_like(table).index_put((trial, rows, columns), weights, accumulate=True)
    total = counts.sum(-1, keepdim=True)
    return torch.where(total > 0, (counts / total.clamp(min=1e-300)).log(), table)


def iterate(estimate, trials, iterations, seed=0, trains=("selector", "generator")):
    """Sum of log p(y|x) before and after each iteration: (iterations + 1, trials)."""
    selector, generator, queries, answers = tables(trials, seed)
    curve = [marginal(selector, generator, queries, answers)]
    lists = torch.arange(6).expand(trials, 8, 6)
    for _ in range(iterations):
        weights = estimate(*records(selector, generator, queries, answers))
        per_list = queries.unsqueeze(-1).expand_as(lists), answers.unsqueeze(-1).expand_as(lists)
        if "selector" in trains:
            selector = maximise(selector, per_list[0], lists, weights)
        if "generator" in trains:
            generator = maximise(generator, lists, per_list[1], weights)
        curve.append(marginal(selector, generator, queries, answers))
    return torch.stack(curve)


TRAINED = [("selector", "generator"), ("selector",), ("generator",)]


@pytest.mark.parametrize("trains", TRAINED)
def test_exact_posteriors_never_lower_the_likelihood(trains):
    curve = iterate(exact, trials=300, iterations=25, trains=trains)
    assert curve.isfinite().all()
    assert (curve.diff(dim=0) > -1e-10).all()
    assert (curve[1] - curve[0] > 1e-3).all()  # and it does rise
    assert (curve <= 0).all()


@pytest.mark.parametrize("trains", TRAINED)
def test_eight_samples_lower_the_likelihood_at_times(trains):
    curve = iterate(sampled(8), trials=300, iterations=10, trains=trains)
    fell = curve.diff(dim=0) < -1e-6
    assert fell.any(0).float().mean() > 0.2  # trials with at least one fall
    # The first step, from random tables, is upwards in most trials all the same.
    assert (curve[1] > curve[0]).float().mean() > 0.8


def test_more_samples_come_nearer_to_exact_posteriors():
    want = iterate(exact, trials=200, iterations=1)[1]
    few = (iterate(sampled(8), trials=200, iterations=1)[1] - want).abs().mean()
    many = (iterate(sampled(512), trials=200, iterations=1)[1] - want).abs().mean()
    assert many < few / 4


def test_share_of_falls_of_one_step_of_the_selector():
    """One query, a selector over six lists, m = 8, the generator fixed, 2,000 trials."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 2000, 6, dtype=torch.float64, generator=generator)
    prior, likelihood = noise[0].log_softmax(-1), torch.nn.functional.logsigmoid(noise[1])
    before = (prior + likelihood).logsumexp(-1)

    def share_of_falls(weights):
        after = (weights.log() + likelihood).logsumexp(-1)
        return (after < before - 1e-12).double().mean().item()

    assert share_of_falls(exact(prior, likelihood)) == 0
    assert 0.02 < share_of_falls(sampled(8)(prior, likelihood)) < 0.3


def test_gradient_at_the_exact_posterior_is_that_of_the_likelihood():
    """Fisher's identity: the weighted losses have the gradient of -log p(y|x) in both tables."""
    torch.manual_seed(0)
    scores = torch.randn(3, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(6, ANSWERS, dtype=torch.float64, requires_grad=True)
    log_p = plackett_luce_log_prob(scores, torch.tensor(LISTS))
    log_likelihood = logits.log_softmax(-1)[:, 2]
    weights = importance_weights(log_likelihood, log_prior=log_p)
    loss = -(weights * (log_p + log_likelihood)).sum()
    got = torch.autograd.grad(loss, (scores, logits), retain_graph=True)
    want = torch.autograd.grad(-(log_p + log_likelihood).logsumexp(0), (scores, logits))
    for ours, exact_gradient in zip(got, want, strict=True):
        torch.testing.assert_close(ours, exact_gradient)

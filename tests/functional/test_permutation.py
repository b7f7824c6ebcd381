import doctest
import itertools
import math
import re

import pytest
import torch

from lightning_rag.functional import permutation
from lightning_rag.functional.likelihood import sequence_log_likelihood
from lightning_rag.functional.permutation import (
    effective_sample_size,
    first_occurrences,
    hard_max_weights,
    importance_weights,
    leave_one_out_baseline,
    log_mean_exp,
    mean_baseline,
    plackett_luce_log_prob,
    raw_weights,
    sample_plackett_luce,
    uniform_weights,
)

INF, NAN = math.inf, math.nan
KINDS = {
    "pl_enumeration": 9,
    "pl_logprob": 4,
    "importance_weights": 16,
    "dro_loss": 2,
    "official_answer_mean_ce": 1,
    "official_reweight": 3,
    "official_weighted_loss": 2,
}
# The example of three candidates, lists of two, that has been worked out by hand.
SCORES = (0.0, 0.5, 1.0)
LISTS = tuple(itertools.permutations(range(3), 2))
LIKELIHOODS = (0.8, 0.1, 0.6, 0.05, 0.2, 0.02)
GRAD_LOG_MARGINAL = (0.520961, 0.097059, -0.618020)


def wide(values, **kwargs):
    return torch.tensor(values, dtype=torch.float64, **kwargs)


def naive_log_prob(scores, positions):
    """One list, place by place."""
    left = dict(enumerate(scores))
    total = 0.0
    for position in positions:
        if position == -1:
            continue
        mass = sum(math.exp(score) for score in left.values())
        own = math.exp(left.pop(position))
        total += math.log(own / mass) if own > 0 else -INF
    return total


def naive_weights(log_likelihood, log_prior=None, log_proposal=None, temperature=1.0):
    """One query, sample by sample."""
    terms = []
    for i, term in enumerate(log_likelihood):
        term = term + (log_prior[i] if log_prior else 0) - (log_proposal[i] if log_proposal else 0)
        terms.append(math.exp(term / temperature) if math.isfinite(term) else 0.0)
    return [term / sum(terms) if sum(terms) else 0.0 for term in terms]


def multisets(count, size):
    """All unordered draws of `size` out of `count`, (R, size), and how many ordered draws each is.

    What is worked out for a draw must not depend on its order.
    """
    rows = torch.tensor(list(itertools.combinations_with_replacement(range(count), size)))
    counts = (rows.unsqueeze(-1) == torch.arange(count)).sum(1).double()
    ways = (torch.lgamma(wide(size + 1)) - torch.lgamma(counts + 1).sum(-1)).exp().round()
    assert ways.sum() == count**size
    return rows, ways


# --- golden values -------------------------------------------------------------------------------


@pytest.fixture
def cases(golden):
    """Cases of one kind, and a comparison within the tolerance of the file."""
    file = golden("dro_weights")

    def read(kind):
        found = [case for case in file["cases"] if case["kind"] == kind]
        assert len(found) == KINDS[kind]
        return found

    def near(got, want):
        tolerance = file["tolerance"]
        want = torch.as_tensor(want, dtype=torch.float64)
        torch.testing.assert_close(got.detach(), want, rtol=tolerance["rel"], atol=tolerance["abs"])

    assert {case["kind"] for case in file["cases"]} == set(KINDS)
    return read, near


def test_golden_enumeration(cases):
    read, near = cases
    for case in read("pl_enumeration"):
        given, want = case["inputs"], case["outputs"]
        scores = wide(given["scores"], requires_grad=True)
        lists = list(itertools.permutations(range(len(scores)), given["K"]))
        assert [list(one) for one in lists] == want["lists"]
        log_p = plackett_luce_log_prob(scores, torch.tensor(lists))
        log_likelihood = wide(given["likelihoods"]).log()
        log_marginal = (log_p + log_likelihood).logsumexp(0)
        near(log_p, want["log_p"])
        near(log_p.exp(), want["p"])
        near(log_p.exp().sum(), want["sum_p"])
        near(log_marginal, want["log_marginal"])
        near(log_marginal.exp(), want["marginal"])
        (gradient,) = torch.autograd.grad(log_marginal, scores, retain_graph=True)
        near(gradient, want["grad_log_marginal"])
        (gradient,) = torch.autograd.grad(log_marginal.exp(), scores)
        near(gradient, want["grad_marginal"])
        # Over all lists, each once and with its prior, the weights are the posterior.
        posterior = importance_weights(log_likelihood, log_prior=log_p)
        near(posterior, want["posterior"])
        p = log_p.detach().exp()
        true = raw_weights(log_likelihood) / want["marginal"]
        near(true, want["true_weights"])
        near(p @ true, want["mean_true_weight"])
        near(true.max(), want["max_true_weight"])
        near(p @ log_likelihood, want["elbo_at_prior"])
        bound = posterior @ (log_p + log_likelihood - posterior.log())
        near(bound, want["elbo_at_posterior"])


def test_golden_expected_directions_and_their_covariances(cases):
    read, near = cases
    for case in read("pl_enumeration"):
        given, want = case["inputs"], case["outputs"]
        lists = torch.tensor(want["lists"])

        def log_prob(scores, lists=lists):
            return plackett_luce_log_prob(scores, lists)

        scores = wide(given["scores"])
        gradients = torch.autograd.functional.jacobian(log_prob, scores)  # (lists, N)
        log_p, log_likelihood = log_prob(scores), wide(given["likelihoods"]).log()
        for size, expected in want["snis"].items():
            draws, ways = multisets(len(lists), int(size))
            chance = ways * log_p[draws].sum(-1).exp()
            near(chance.sum(), 1.0)
            each, along = log_likelihood[draws], gradients[draws]  # (R, S), (R, S, N)
            weights = importance_weights(each)
            direction = (weights.unsqueeze(-1) * along).sum(1)
            mean = chance @ direction
            near(mean, expected["expected_direction"])
            near(chance @ direction.square().sum(-1) - mean @ mean, expected["trace_cov"])
            direction = ((weights - mean_baseline(weights)).unsqueeze(-1) * along).sum(1)
            near(chance @ direction, expected["expected_direction"])
            spread = chance @ direction.square().sum(-1) - mean @ mean
            near(spread, expected["trace_cov_baseline"])
            # As released: each list once, without the prior.
            first = first_occurrences(lists[draws])
            weights = importance_weights(each.masked_fill(~first, -INF))
            direction = (weights.unsqueeze(-1) * along).sum(1)
            near(chance @ direction, expected["expected_direction_dedup"])


def test_golden_log_probabilities(cases):
    read, near = cases
    for case in read("pl_logprob"):
        given, want = case["inputs"], case["outputs"]
        lists = torch.tensor(given["lists"])
        scores = wide(given["scores"]).expand(len(lists), -1).clone().requires_grad_()
        log_p = plackett_luce_log_prob(scores, lists)
        log_p.sum().backward()
        near(log_p, want["log_p"])
        near(scores.grad, want["grad_scores"])


def test_golden_weights(cases):
    read, near = cases
    for case in read("importance_weights"):
        given, want = case["inputs"], case["outputs"]
        log_likelihood = wide(given["log_likelihoods"])
        weights = importance_weights(
            log_likelihood,
            log_prior=None if given["log_p"] is None else wide(given["log_p"]),
            log_proposal=None if given["log_q"] is None else wide(given["log_q"]),
            temperature=given["temperature"],
        )
        near(weights, want["weights"])
        near(effective_sample_size(weights), want["ess"])
        near(log_mean_exp(log_likelihood), want["logmeanexp"])


def test_golden_loss_and_its_gradients(cases):
    read, near = cases
    for case in read("dro_loss"):
        given, want = case["inputs"], case["outputs"]
        scores = wide(given["scores"], requires_grad=True)
        logits = wide(given["generator_logits"], requires_grad=True)  # (S, T, V)
        answer = torch.tensor(given["answer"]).expand(len(logits), -1)
        log_likelihood = sequence_log_likelihood(logits, answer)
        log_p = plackett_luce_log_prob(scores, torch.tensor(given["lists"]))
        weights = importance_weights(log_likelihood)
        loss = -(weights * (log_p + log_likelihood)).sum()
        near(log_likelihood, want["log_likelihoods"])
        near(log_p, want["log_p"])
        near(weights, want["weights"])
        near(loss, want["loss"])
        by_scores, by_logits = torch.autograd.grad(loss, (scores, logits), retain_graph=True)
        near(by_scores, want["grad_scores"])
        near(by_logits, want["grad_generator_logits"])
        (bound,) = torch.autograd.grad(-log_mean_exp(log_likelihood), logits)
        near(bound, want["grad_iwae_generator_logits"])
        torch.testing.assert_close(bound, by_logits)


def test_golden_mean_cross_entropy_of_the_released_code(cases):
    read, near = cases
    for case in read("official_answer_mean_ce"):
        logits, labels = wide(case["inputs"]["logits"]), torch.tensor(case["inputs"]["labels"])
        got = -sequence_log_likelihood(logits[:, :-1], labels[:, 1:], reduction="mean")
        near(got, case["outputs"]["causal_cross_entropy"])
        near(got, case["outputs"]["cal_ppl"])


def test_golden_weighting_of_the_released_code(cases):
    """Each list once, weights from the mean, without the prior; short lists are dropped after."""
    read, near = cases
    for case in read("official_reweight"):
        size, got = case["inputs"]["sample_num"], []
        rows = [row for row in case["inputs"]["rows"] if row["sample_id"] < size]
        for query, group in itertools.groupby(rows, key=lambda row: row["query_id"]):
            group = list(group)
            chains = [[int(n) for n in re.findall(r"\d+", r["selector_output"])] for r in group]
            longest = max(map(len, chains))
            lists = torch.tensor([chain + [-1] * (longest - len(chain)) for chain in chains])
            first = first_occurrences(lists)
            cross_entropy = wide([row["mean_ce"] for row in group])
            weights = importance_weights((-cross_entropy).masked_fill(~first, -INF))
            index = first.cumsum(0) - 1  # among those that are left
            for i in first.nonzero().flatten().tolist():
                distinct = list(dict.fromkeys(chains[i]))
                if len(distinct) == 5 and group[i]["n_candidates"] >= 20:
                    chain = " > ".join(f"[{n}]" for n in distinct)
                    got.append((query, index[i].item(), chain, weights[i]))
        want = case["outputs"]["rows"]
        assert [row[:3] for row in got] == [
            (row["query_id"], row["index_after_dedup"], row["target"]) for row in want
        ]
        near(torch.stack([row[3] for row in got]), [row["weight"] for row in want])


def test_golden_weighted_loss_of_the_released_code(cases):
    """The sum over the rows of weight times mean cross-entropy, divided by the constant 4."""
    read, near = cases
    for case in read("official_weighted_loss"):
        given, want = case["inputs"], case["outputs"]
        logits = wide(given["logits"], requires_grad=True)
        labels = torch.tensor(given["labels"])[:, 1:]
        mean = sequence_log_likelihood(logits[:, :-1], labels, reduction="mean")
        loss = -(wide(given["weights"]) * mean).sum() / 4
        loss.backward()
        near(loss, want["loss"])
        near(logits.grad, want["grad_logits"])


# --- log-probability of lists --------------------------------------------------------------------


def test_log_probability_equals_a_naive_loop():
    torch.manual_seed(0)
    scores = 2 * torch.randn(3, 1, 7, dtype=torch.float64)
    scores[1, 0, 4] = -INF
    scores[2, 0, 1:] = -INF
    positions = torch.stack([torch.randperm(7)[:4] for _ in range(15)]).view(3, 5, 4)
    positions[0, 0, 3] = -1
    positions[0, 1, 1] = -1  # nothing in the middle
    positions[0, 2] = -1
    positions[1, 0] = torch.tensor([2, 4, 0, 1])  # 4 may not be had
    positions[2, 0] = torch.tensor([0, -1, -1, -1])
    got = plackett_luce_log_prob(scores, positions)
    want = [
        [naive_log_prob(scores[b, 0].tolist(), z) for z in positions[b].tolist()] for b in range(3)
    ]
    torch.testing.assert_close(got, wide(want))
    assert got[0, 2] == got[2, 0] == 0
    assert got[1, 0] == -INF


def test_leading_dimensions_broadcast_both_ways():
    torch.manual_seed(0)
    scores, lists = torch.randn(2, 3, 5), torch.tensor([[4, 0], [1, 2]])
    one = plackett_luce_log_prob(scores, lists[0])
    assert one.shape == (2, 3)
    many = plackett_luce_log_prob(scores.unsqueeze(2), lists)
    assert many.shape == (2, 3, 2)
    torch.testing.assert_close(many[..., 0], one)
    torch.testing.assert_close(
        plackett_luce_log_prob(scores[0, 0], lists), many[0, 0], rtol=0, atol=0
    )
    assert plackett_luce_log_prob(scores[:, :1], lists[:0]).shape == (2, 0)
    assert plackett_luce_log_prob(scores, lists[:, :0].int()[0]).eq(0).all()


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1000.0])
def test_probabilities_of_all_lists_sum_to_one(k, scale):
    torch.manual_seed(0)
    scores = scale * torch.randn(2, 1, 5, dtype=torch.float64)
    lists = torch.tensor(list(itertools.permutations(range(5), k)))
    total = plackett_luce_log_prob(scores, lists).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_candidates_that_may_not_be_had_take_nothing_from_the_others():
    scores = wide([0.3, -INF, 1.0, -0.4, -INF])
    lists = torch.tensor(list(itertools.permutations(range(5), 2)))
    log_p = plackett_luce_log_prob(scores, lists)
    possible = ~((lists == 1) | (lists == 4)).any(-1)
    assert log_p[~possible].eq(-INF).all()
    torch.testing.assert_close(log_p.exp().sum(), wide(1.0))
    small = torch.tensor([0, -1, 1, 2, -1])[lists[possible]]
    torch.testing.assert_close(
        log_p[possible], plackett_luce_log_prob(scores[[0, 2, 3]], small), rtol=0, atol=1e-15
    )


def test_one_candidate_that_has_nearly_all():
    """log p of what is left is exact, where one minus the taken probability would be 0."""
    scores = torch.tensor([80.0, 0.0, 0.0], requires_grad=True)
    log_p = plackett_luce_log_prob(scores, torch.tensor([0, 1, 2]))
    log_p.backward()
    torch.testing.assert_close(log_p.detach(), torch.tensor(-math.log(2.0)))
    torch.testing.assert_close(scores.grad, torch.tensor([0.0, 0.5, -0.5]))


def test_gradient():
    torch.manual_seed(0)
    scores = torch.randn(2, 1, 6, dtype=torch.float64, requires_grad=True)
    positions = torch.stack([torch.randperm(6)[:4] for _ in range(6)]).view(2, 3, 4)
    positions[0, 0, 2:] = -1
    positions[1, 1, 1] = -1
    assert torch.autograd.gradcheck(lambda s: plackett_luce_log_prob(s, positions), scores)


def test_gradient_is_finite_beside_minus_infinity():
    scores = torch.tensor([[0.2, -INF, 1.0], [-INF, -INF, -INF]], requires_grad=True)
    positions = torch.tensor([[[2, 0, -1], [2, 0, 1]], [[-1, -1, -1], [0, 1, 2]]])
    log_p = plackett_luce_log_prob(scores.unsqueeze(1), positions)
    assert log_p[1].tolist() == [0, -INF]
    assert log_p[0, 1] == -INF
    (gradient,) = torch.autograd.grad(log_p[:, 0].sum(), scores, retain_graph=True)
    first = math.exp(0.2) / (math.exp(0.2) + math.exp(1.0))
    torch.testing.assert_close(gradient, torch.tensor([[-first, 0, first], [0, 0, 0]]))
    (gradient,) = torch.autograd.grad(log_p.masked_fill(log_p == -INF, 0).sum(), scores)
    assert gradient.isfinite().all()


def test_a_score_of_nan_shows():
    assert plackett_luce_log_prob(torch.tensor([0.0, NAN]), torch.tensor([0])).isnan()


def test_half_precision_is_worked_out_in_float32():
    scores = torch.randn(4, 9).bfloat16()
    lists = torch.tensor([3, 8, 0])
    got = plackett_luce_log_prob(scores, lists)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, plackett_luce_log_prob(scores.float(), lists))
    assert plackett_luce_log_prob(scores.double(), lists).dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "positions", "message"),
    [
        ((), [0], r"scores must be \(\.\.\., N\)"),
        ((0,), [0], r"N >= 1"),
        ((3,), 0, r"positions \(\.\.\., K\), got \(3,\) and \(\)"),
        ((2, 3), [[0], [1], [2]], r"do not broadcast: \(2, 3\) and \(3, 1\)"),
        ((3,), [0.0], "positions must be integers, got torch.float32"),
        ((2,), [True, False], "positions must be integers, got torch.bool"),
        ((3,), [0, 3], "between 0 and 2 .*, got 3"),
        ((3,), [0, -2], "between 0 and 2 .*, got -2"),
        ((3,), [[0, 1], [2, 2]], r"must not be twice in a list, got \[2, 2\]"),
        ((3,), [[1, -1, 1]], r"must not be twice in a list, got \[1, -1, 1\]"),
    ],
)
def test_bad_lists(shape, positions, message):
    with pytest.raises(ValueError, match=message):
        plackett_luce_log_prob(torch.zeros(shape), torch.tensor(positions))


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", [(0.0, 0.0, 0.0, 0.0), (1.5, 0.0, -1.0, 0.5)])
def test_samples_are_as_frequent_as_they_are_probable(scores):
    lists = torch.tensor(list(itertools.permutations(range(4), 2)))
    count = 20_000
    drawn = sample_plackett_luce(
        torch.tensor(scores), 2, count, generator=torch.Generator().manual_seed(3)
    )
    observed = (drawn.unsqueeze(1) == lists).all(-1).sum(0).double()
    assert observed.sum() == count
    expected = count * plackett_luce_log_prob(wide(scores), lists).exp()
    chi_square = ((observed - expected).square() / expected).sum()
    assert chi_square < 31.26  # 11 degrees of freedom, one in a thousand


def test_samples_of_a_query_do_not_depend_on_each_other_nor_on_other_queries():
    scores = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    drawn = sample_plackett_luce(
        scores, 1, 20_000, generator=torch.Generator().manual_seed(0)
    ).squeeze(-1)
    p = torch.tensor([2.0, 0.0]).softmax(0)[1].item()
    bound = 4 * math.sqrt(p * p * (1 - p * p) / 10_000)
    pairs = drawn[0].view(-1, 2)
    assert abs((pairs == 1).all(-1).float().mean() - p * p) < bound
    both = (drawn[0] == 1) & (drawn[1] == 0)
    assert abs(both.float().mean() - p * p) < bound


def test_samples_follow_the_generator():
    scores = torch.randn(2, 3, 6, requires_grad=True)
    first = sample_plackett_luce(scores, 4, 5, generator=torch.Generator().manual_seed(1))
    again = sample_plackett_luce(scores, 4, 5, generator=torch.Generator().manual_seed(1))
    other = sample_plackett_luce(scores, 4, 5, generator=torch.Generator().manual_seed(2))
    assert first.equal(again)
    assert not first.equal(other)
    assert first.shape == (2, 3, 5, 4)
    assert first.dtype == torch.long
    assert first.sort(-1).values.diff(dim=-1).gt(0).all()  # no candidate twice
    torch.manual_seed(4)
    free = sample_plackett_luce(scores, 4, 5)
    torch.manual_seed(4)
    assert sample_plackett_luce(scores, 4, 5).equal(free)


def test_too_few_candidates_are_filled_with_nothing():
    scores = torch.tensor([[0.0, -INF, 1.0], [-INF, -INF, -INF]])
    drawn = sample_plackett_luce(scores, 5, 50, generator=torch.Generator().manual_seed(0))
    assert drawn.shape == (2, 50, 5)
    assert drawn[0, :, :2].sort(-1).values.eq(torch.tensor([0, 2])).all()
    assert drawn[0, :, 2:].eq(-1).all()
    assert drawn[1].eq(-1).all()
    assert plackett_luce_log_prob(scores.unsqueeze(1), drawn).isfinite().all()


def test_scores_far_apart_are_sampled_in_their_order():
    sure = sample_plackett_luce(torch.tensor([0.0, 1e6, 2e6]), 3, 1000)
    assert sure.eq(torch.tensor([2, 1, 0])).all()


@pytest.mark.parametrize(
    ("scores", "k", "num_samples", "message"),
    [
        ([], 1, 1, "N >= 1"),
        (0.0, 1, 1, "N >= 1"),
        ([0.0], 0, 1, "at least 1, got 0 and 1"),
        ([0.0], 1, 0, "at least 1, got 1 and 0"),
        ([0.0, NAN], 1, 1, "got NaN or"),
        ([0.0, INF], 1, 1, "finite or -inf"),
    ],
)
def test_bad_sampling(scores, k, num_samples, message):
    with pytest.raises(ValueError, match=message):
        sample_plackett_luce(torch.tensor(scores), k, num_samples)


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("proposal", [False, True])
def test_weights_equal_a_naive_loop(temperature, prior, proposal):
    torch.manual_seed(0)
    log_likelihood, log_p, log_q = -3 * torch.rand(3, 2, 4, 5, dtype=torch.float64)
    log_likelihood[0, 0, :2] = torch.tensor([NAN, -INF])
    log_likelihood[1, 1] = -INF
    log_p[0, 1, 3], log_q[0, 2, 4] = -INF, -INF
    given = {"log_prior": log_p if prior else None, "log_proposal": log_q if proposal else None}
    got = importance_weights(log_likelihood, temperature=temperature, **given)
    for b, s in itertools.product(range(2), range(4)):
        row = {name: term[b, s].tolist() for name, term in given.items() if term is not None}
        want = naive_weights(log_likelihood[b, s].tolist(), temperature=temperature, **row)
        torch.testing.assert_close(got[b, s], wide(want))
    assert got[1, 1].eq(0).all()
    assert got[0, 0, :2].eq(0).all()


def test_numbers_of_the_example():
    """Weights from the sum over the tokens, and from the mean over four of them."""
    log_likelihood = wide([-2.0, -3.0, -3.0, -10.0])
    for temperature, want, size in (
        (1.0, [0.576006, 0.211901, 0.211901, 0.000193], 2.372),
        (4.0, [0.371342, 0.289201, 0.289201, 0.050256], 3.250),
    ):
        weights = importance_weights(log_likelihood, temperature=temperature)
        torch.testing.assert_close(weights, wide(want), rtol=0, atol=6e-7)
        torch.testing.assert_close(effective_sample_size(weights), wide(size), rtol=0, atol=6e-4)


def test_weights_show_ratios_only():
    torch.manual_seed(0)
    log_likelihood = torch.randn(3, 8, dtype=torch.float64)
    weights = importance_weights(log_likelihood)
    torch.testing.assert_close(importance_weights(log_likelihood - 2000), weights)
    assert importance_weights(torch.full((2, 8), -900.0)).eq(1 / 8).all()
    assert importance_weights(torch.tensor([[-1e4]])).eq(1).all()
    torch.testing.assert_close(weights.sum(-1), wide([1.0, 1.0, 1.0]))


def test_prior_and_proposal_cancel_where_they_are_the_same():
    torch.manual_seed(0)
    log_likelihood, log_p = torch.randn(2, 3, 8, dtype=torch.float64)
    torch.testing.assert_close(
        importance_weights(log_likelihood, log_prior=log_p, log_proposal=log_p),
        importance_weights(log_likelihood),
    )


@pytest.mark.parametrize(
    "weigh", [importance_weights, raw_weights, uniform_weights, hard_max_weights]
)
def test_weights_have_no_gradient_and_leave_out_what_is_not_finite(weigh):
    log_likelihood = torch.tensor(
        [[-1.0, NAN, -2.0, -INF], [INF, NAN, -INF, -INF]], requires_grad=True
    )
    weights = weigh(log_likelihood)
    assert not weights.requires_grad
    assert weights.eq(0).tolist()[0][1::2] == [True, True]
    assert weights[0, 0] > 0
    assert weights[1].eq(0).all()
    assert weigh(log_likelihood.bfloat16()).dtype == torch.float32
    assert weigh(log_likelihood.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"log_likelihood must be \(\.\.\., S\).*got \(2, 0\)"):
        weigh(torch.zeros(2, 0))


def test_the_other_weights():
    log_likelihood = torch.tensor([[-1.0, -0.5, NAN, -0.5], [-3.0, -2.0, -7.0, -INF]])
    torch.testing.assert_close(
        raw_weights(log_likelihood),
        torch.tensor([[0.367879, 0.606531, 0, 0.606531], [0.049787, 0.135335, 0.000912, 0]]),
        rtol=0,
        atol=1e-6,
    )
    third = 1 / 3
    torch.testing.assert_close(
        uniform_weights(log_likelihood),
        torch.tensor([[third, third, 0, third], [third, third, third, 0]]),
    )
    # Of equal ones the first.
    assert hard_max_weights(log_likelihood).tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("name", ["log_prior", "log_proposal"])
def test_bad_terms(name):
    with pytest.raises(ValueError, match=rf"{name} must have the shape .*\(2, 3\), got \(3,\)"):
        importance_weights(torch.zeros(2, 3), **{name: torch.zeros(3)})


@pytest.mark.parametrize("temperature", [0.0, -1.0, INF, NAN])
def test_bad_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        importance_weights(torch.zeros(2), temperature=temperature)


# --- lists that were drawn several times ---------------------------------------------------------


def test_first_occurrences_equal_a_naive_loop():
    torch.manual_seed(0)
    positions = torch.randint(-1, 2, (4, 3, 9, 2))
    got = first_occurrences(positions)
    for b, c in itertools.product(range(4), range(3)):
        seen, want = set(), []
        for one in map(tuple, positions[b, c].tolist()):
            want.append(one not in seen)
            seen.add(one)
        assert got[b, c].tolist() == want
    with pytest.raises(ValueError, match=r"\(\.\.\., S, K\), got \(3,\)"):
        first_occurrences(torch.zeros(3))


def test_three_ways_to_treat_lists_that_were_drawn_several_times():
    lists = torch.tensor(LISTS)
    log_p = plackett_luce_log_prob(wide(SCORES), lists)
    log_likelihood = wide(LIKELIHOODS).log()
    drawn = torch.tensor([5, 3, 5, 0, 1, 2, 4, 5, 3])
    prior, each = log_p[drawn], log_likelihood[drawn]
    first = each.masked_fill(~first_occurrences(lists[drawn]), -INF)

    def per_list(weights):
        return torch.zeros(6, dtype=torch.float64).index_add(0, drawn, weights)

    # Each draw counts.
    counts = wide([1, 1, 1, 2, 1, 3])
    likelihoods = wide(LIKELIHOODS)
    want = counts * likelihoods / (counts @ likelihoods)
    torch.testing.assert_close(per_list(importance_weights(each)), want)
    # Each list once, with its prior. All lists are there: this is the posterior itself.
    posterior = (log_p + log_likelihood).softmax(0)
    merged = importance_weights(first, log_prior=prior)
    assert merged[[2, 7, 8]].eq(0).all()
    torch.testing.assert_close(per_list(merged), posterior)
    # As released: each list once, without the prior. That it is not the posterior is its fault.
    released = per_list(importance_weights(first))
    torch.testing.assert_close(released, likelihoods / likelihoods.sum())
    assert (released - posterior).abs().max() > 0.1


# --- effective sample size, estimate of the likelihood, baselines --------------------------------


def test_effective_sample_size():
    weights = torch.tensor([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0, 0, 0, 0], [3, 3, 0, 0]])
    assert effective_sample_size(weights).tolist() == [4, 1, 0, 2]
    tiny = wide([3e-200, 4e-200])  # whose squares are 0
    torch.testing.assert_close(effective_sample_size(tiny), wide(49 / 25))
    with pytest.raises(ValueError, match=r"weights must be \(\.\.\., S\)"):
        effective_sample_size(torch.zeros(()))


def test_log_mean_exp():
    log_likelihood = torch.tensor(
        [[-1.0, -2.0, -INF], [-1.0, -2.0, NAN], [-INF, NAN, -INF], [-900.0, -900.0, -900.0]],
        requires_grad=True,
    )
    got = log_mean_exp(log_likelihood)
    mean = math.log((math.exp(-1) + math.exp(-2)) / 3)
    torch.testing.assert_close(got.detach(), torch.tensor([mean, mean, -INF, -900.0]))
    got.masked_fill(got == -INF, 0).sum().backward()
    torch.testing.assert_close(log_likelihood.grad, importance_weights(log_likelihood))
    with pytest.raises(ValueError, match=r"log_likelihood must be \(\.\.\., S\)"):
        log_mean_exp(torch.zeros(3, 0))


def test_no_gradient_where_no_likelihood_is_finite():
    log_likelihood = torch.full((3,), -INF, requires_grad=True)
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way either
        log_mean_exp(log_likelihood).backward()
    assert log_likelihood.grad.eq(0).all()


def test_baselines_equal_a_naive_loop():
    torch.manual_seed(0)
    values = torch.randn(2, 3, 5, dtype=torch.float64)
    mean, others = mean_baseline(values), leave_one_out_baseline(values)
    for b, c, s in itertools.product(range(2), range(3), range(5)):
        row = values[b, c].tolist()
        assert mean[b, c, s].item() == pytest.approx(sum(row) / 5)
        assert others[b, c, s].item() == pytest.approx((sum(row) - row[s]) / 4)
    assert leave_one_out_baseline(torch.tensor([[7.0]])).tolist() == [[0]]
    assert mean_baseline(torch.tensor([[7.0]])).tolist() == [[7]]
    # Beside one large value the others keep their digits.
    assert leave_one_out_baseline(torch.tensor([1e8, 1.0, 3.0]))[0] == 2
    for baseline in (mean_baseline, leave_one_out_baseline):
        with pytest.raises(ValueError, match=r"values must be \(\.\.\., S\)"):
            baseline(torch.zeros(()))


# --- expected gradients, over all draws of the example -------------------------------------------


def example(size):
    """Scores, and for every ordered draw of `size` lists: its chance, log p and likelihoods."""
    scores = wide(SCORES, requires_grad=True)
    draws = torch.tensor(list(itertools.product(range(6), repeat=size)))  # (6 ** S, S)
    log_p = plackett_luce_log_prob(scores, torch.tensor(LISTS))[draws]
    return scores, log_p.detach().sum(-1).exp(), log_p, wide(LIKELIHOODS).log()[draws]


def descent(scores, chance, log_p, weights):
    """What the loss -sum_i w_i log p(z_i) adds to the scores, in expectation, and its spread."""
    (gradient,) = torch.autograd.grad(
        -(chance @ (weights * log_p).sum(-1)), scores, retain_graph=True
    )
    each = torch.autograd.functional.jacobian(
        lambda s: plackett_luce_log_prob(s, torch.tensor(LISTS)), scores.detach()
    )
    size = log_p.shape[-1]
    draws = torch.tensor(list(itertools.product(range(6), repeat=size)))
    spread = (weights.unsqueeze(-1) * each[draws]).sum(1).square().sum(-1)
    return -gradient, (chance @ spread - gradient @ gradient).item()


@pytest.mark.parametrize(
    ("size", "want", "spread", "spread_with_baseline"),
    [
        (1, (0, 0, 0), None, 0),
        (2, (0.209138, -0.051022, -0.158116), 0.9449, 0.1967),
        (4, (0.363987, -0.046721, -0.317266), 0.6763, 0.2682),
    ],
)
def test_expected_gradient_of_self_normalised_weights(size, want, spread, spread_with_baseline):
    scores, chance, log_p, each = example(size)
    torch.testing.assert_close(chance.sum(), wide(1.0))
    weights = importance_weights(each)
    got, variance = descent(scores, chance, log_p, weights)
    torch.testing.assert_close(got, wide(want), rtol=0, atol=1e-6)
    if spread is not None:
        assert variance == pytest.approx(spread, abs=1e-4)
    # The mean of the weights as a baseline changes the spread alone.
    got, variance = descent(scores, chance, log_p, weights - mean_baseline(weights))
    torch.testing.assert_close(got, wide(want), rtol=0, atol=1e-6)
    assert variance == pytest.approx(spread_with_baseline, abs=1e-4)


@pytest.mark.parametrize("size", [2, 4])
def test_expected_gradient_of_raw_weights_is_that_of_the_likelihood(size):
    scores, chance, log_p, each = example(size)
    want = 0.173222 * wide(GRAD_LOG_MARGINAL)
    rewards = raw_weights(each)
    got, spread = descent(scores, chance, log_p, rewards / size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    # The others' mean does not depend on the sample, the mean of all does.
    others = rewards - leave_one_out_baseline(rewards)
    got, less = descent(scores, chance, log_p, others / size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    if size == 4:  # with two samples, the other alone is a poor baseline
        assert less < 0.9 * spread
    got, _ = descent(scores, chance, log_p, (rewards - mean_baseline(rewards)) / size)
    torch.testing.assert_close(got, want * (size - 1) / size, rtol=0, atol=1e-6)


def test_expected_gradient_of_uniform_weights_is_zero():
    scores, chance, log_p, each = example(2)
    got, _ = descent(scores, chance, log_p, uniform_weights(each))
    torch.testing.assert_close(got, wide([0, 0, 0]), rtol=0, atol=1e-12)


def test_a_proposal_that_is_not_the_selector_needs_both_terms():
    """16 lists drawn exactly as often as their proposal says give exactly the posterior."""
    lists, log_likelihood = torch.tensor(LISTS), wide(LIKELIHOODS).log()
    log_p = plackett_luce_log_prob(wide(SCORES), lists)
    counts = torch.tensor([1, 2, 1, 4, 3, 5])
    drawn = torch.arange(6).repeat_interleave(counts)
    log_q = (counts / 16).double().log()

    def per_list(weights):
        return torch.zeros(6, dtype=torch.float64).index_add(0, drawn, weights)

    weights = importance_weights(
        log_likelihood[drawn], log_prior=log_p[drawn], log_proposal=log_q[drawn]
    )
    posterior = wide([0.324877, 0.066954, 0.286168, 0.064824, 0.220777, 0.036400])
    torch.testing.assert_close(per_list(weights), posterior, rtol=0, atol=6e-7)
    ignored = per_list(importance_weights(log_likelihood[drawn]))
    assert (ignored - posterior).abs().max() > 0.02


def test_gradient_of_the_generator_is_that_of_log_mean_exp():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True)  # B, S, answers
    log_likelihood = logits.log_softmax(-1)[..., 2]
    log_likelihood = log_likelihood.masked_fill(torch.eye(3, 4).bool(), -INF)
    weights = importance_weights(log_likelihood)
    loss = -(weights * log_likelihood.masked_fill(log_likelihood == -INF, 0)).sum()
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (want,) = torch.autograd.grad(-log_mean_exp(log_likelihood).sum(), logits)
    torch.testing.assert_close(got, want)


def test_examples_of_the_documentation():
    assert doctest.testmod(permutation).failed == 0

"""Intervals and tests against scipy, statsmodels, naive loops, exact enumeration and simulation."""

from __future__ import annotations

from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from lightning_rag.comparison.statistics import (
    Sums,
    bca_interval,
    corrected,
    detectable_difference,
    effect_size,
    mcnemar_test,
    resample,
    seeds_interval,
    swap_test,
)
from lightning_rag.metrics.counts import MEAN, Aggregation, aggregate, columns, figure

MACRO = Aggregation("f1", "macro")
SHARES = (0.5, 0.3, 0.15, 0.05)  # of four classes, one of them rare


def means(values):
    """Sums of (R, Q) numbers that every query has."""
    values = np.asarray(values, dtype=np.float32)
    return Sums(np.stack([values, np.ones_like(values)], axis=-1), partial(figure, MEAN))


def answers(random, right):
    """Rows of an F1, for each of (R, Q) answers that are right or drawn like the gold ones."""
    gold = random.choice(len(SHARES), size=right.shape[1], p=SHARES)
    found = []
    for run in right:
        drawn = random.choice(len(SHARES), size=len(gold), p=SHARES)
        rows = []
        for said, wanted in zip(np.where(run, gold, drawn), gold, strict=True):
            row = {str(wanted): [0, 0, 1]}
            row.setdefault(str(said), [0, 0, 0])[1] += 1
            row[str(wanted)][0] += int(said == wanted)
            rows.append(row)
        found.append(rows)
    return found


def macro(rows):
    """Sums of a macro F1, with columns for all classes in every run."""
    everything = {str(name): [0, 0, 0] for name in range(len(SHARES))}
    values = [columns(MACRO, [*run, everything])[:-1] for run in rows]
    return Sums(np.stack(values).astype(np.float32), partial(figure, MACRO))


@pytest.fixture
def random():
    return np.random.default_rng(7)


@pytest.fixture
def f1_rows(random):
    return answers(random, random.random((2, 60)) < [[0.8], [0.6]])


# --- resampling


def test_point_and_jackknife_are_those_of_a_naive_loop(f1_rows):
    found = resample([macro(f1_rows)], 3, 0)[0]
    for run, rows in enumerate(f1_rows):
        assert found.point[run] == pytest.approx(aggregate(MACRO, rows), abs=1e-12)
        for left_out in (0, 17, 59):
            others = rows[:left_out] + rows[left_out + 1 :]
            assert found.jackknife[left_out, run] == pytest.approx(
                aggregate(MACRO, others), abs=1e-12
            )


def test_a_resample_is_of_as_many_queries(random):
    values = random.random((2, 50, 1)).astype(np.float32) * 0 + 1
    found = resample([Sums(values, lambda sums: sums[..., 0])], 700, 0)[0]
    assert (found.bootstrap == 50).all()


def test_resamples_are_real_ones_of_the_queries(random):
    # Of three queries that add 1, 10 and 100 the sum tells how often each was drawn.
    values = np.array([[[1.0], [10.0], [100.0]]], dtype=np.float32)
    drawn = resample([Sums(values, lambda sums: sums[..., 0])], 27_000, 0)[0].bootstrap[:, 0]
    legal = {sum(one): 0 for one in product((1, 10, 100), repeat=3)}
    for one in product((1, 10, 100), repeat=3):
        legal[sum(one)] += 1
    seen, counts = np.unique(drawn, return_counts=True)
    assert set(seen) == set(legal)
    expected = [1000 * legal[int(one)] for one in seen]
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_all_runs_and_figures_have_the_same_resamples(random):
    values = random.random(40)
    one, other = resample([means([values, values]), means([1 - values])], 1200, 5)
    assert (one.bootstrap[:, 0] == one.bootstrap[:, 1]).all()
    assert one.bootstrap[:, 0] + other.bootstrap[:, 0] == pytest.approx(np.ones(1200), abs=1e-6)


def test_the_seed_decides_the_draws(random):
    sums = means(random.random((1, 40)))
    first, again, other = (resample([sums], 50, seed)[0].bootstrap for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_spread_of_the_resamples_is_scipys(f1_rows, random):
    sums = macro(f1_rows)

    def statistic(index, axis=-1):
        return figure(MACRO, sums.values[0][index].sum(axis=-2))

    ours = resample([sums], 4000, 0)[0].bootstrap[:, 0].std(ddof=1)
    theirs = stats.bootstrap(
        (np.arange(60),), statistic, n_resamples=4000, method="percentile", batch=100
    )
    assert ours == pytest.approx(theirs.standard_error, rel=0.08)


def test_other_queries_for_one_figure_are_refused(random):
    with pytest.raises(ValueError, match="the same queries"):
        resample([means(random.random((1, 4))), means(random.random((1, 5)))], 10, 0)
    with pytest.raises(ValueError, match="resamples: expected at least 1, got 0"):
        resample([means(random.random((1, 4)))], 0, 0)
    with pytest.raises(ValueError, match="shape"):
        Sums(np.zeros((3, 0, 2), dtype=np.float32), lambda sums: sums[..., 0])


# --- intervals over queries


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_bca_is_scipys(f1_rows, random, confidence):
    skewed = means(random.exponential(size=(1, 35)) ** 2)
    for sums in (macro(f1_rows), skewed, means(random.random((1, 35)) < 0.9)):
        found = resample([sums], 999, 1)[0]
        ours = bca_interval(
            found.point[0], found.bootstrap[:, 0], found.jackknife[:, 0], confidence
        )

        def statistic(index, axis=-1, sums=sums):
            return sums.finish(sums.values[0].astype(np.float64)[index].sum(axis=-2))

        theirs = stats.bootstrap(
            (np.arange(sums.values.shape[1]),),
            statistic,
            n_resamples=0,
            bootstrap_result=SimpleNamespace(bootstrap_distribution=found.bootstrap[:, 0]),
            confidence_level=confidence,
            method="BCa",
        ).confidence_interval
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_queries_that_do_not_vary_have_no_interval():
    found = resample([means(np.ones((1, 20)))], 100, 0)[0]
    assert bca_interval(1.0, found.bootstrap[:, 0], found.jackknife[:, 0], 0.95) is None


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1"):
        bca_interval(0.5, np.arange(5.0), np.arange(5.0), confidence)
    with pytest.raises(ValueError, match="confidence"):
        seeds_interval(np.arange(3.0), np.ones((5, 3)), confidence)


# --- intervals over seeds and queries


def test_if_only_seeds_vary_it_is_students_interval():
    point = np.array([0.71, 0.78, 0.73])
    found = seeds_interval(point, np.tile(point, (50, 1)), 0.95)
    known = stats.ttest_1samp(point, 0.0)
    interval = known.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(known.pvalue, rel=1e-6)


def test_if_only_queries_vary_it_is_the_normal_interval(random):
    drawn = random.normal(0.02, 0.01, size=500)
    found = seeds_interval(np.full(4, 0.02), np.tile(drawn[:, None], (1, 4)), 0.9)
    reach = stats.norm.ppf(0.95) * drawn.std(ddof=1)
    assert (found.low, found.high) == pytest.approx((0.02 - reach, 0.02 + reach))
    assert found.p == pytest.approx(2 * stats.norm.sf(0.02 / drawn.std(ddof=1)), rel=1e-6)


def test_its_variance_is_that_of_a_cluster_bootstrap_with_the_excess_taken_off(random):
    seeds, queries = 4, 80
    values = (
        0.5
        + random.normal(0, 0.05, (seeds, 1))
        + random.normal(0, 0.3, (1, queries))
        + random.normal(0, 0.3, (seeds, queries))
    ).astype(np.float32)
    found = resample([means(values)], 20_000, 0)[0]
    interval = seeds_interval(found.point, found.bootstrap, 0.95)
    # The bootstrap as it is written down: both are drawn, one seed less than there are.
    literal = []
    for _ in range(20_000):
        drawn = random.integers(seeds, size=seeds - 1)
        picked = values[drawn][:, random.integers(queries, size=queries)]
        literal.append(picked.mean())
    # What a seed adds to a query of its own: the residuals of the two-way analysis of variance.
    rest = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
    both = (rest**2).sum() / ((seeds - 1) * queries**2) / seeds
    of_seeds = found.point.var(ddof=1) / seeds
    added = np.var(literal) - 2 * both - of_seeds
    t, z = stats.t.ppf(0.975, seeds - 1), stats.norm.ppf(0.975)
    reach = np.sqrt(t**2 * of_seeds + z**2 * added)
    assert (interval.high - interval.low) / 2 == pytest.approx(reach, rel=0.03)
    assert (interval.high + interval.low) / 2 == pytest.approx(found.point.mean())


def test_p_is_the_level_at_which_0_is_at_the_end(random):
    found = resample([means(random.normal(0.1, 1, (3, 60)))], 500, 0)[0]
    p = seeds_interval(found.point, found.bootstrap, 0.95).p
    assert 0.001 < p < 0.999
    interval = seeds_interval(found.point, found.bootstrap, 1 - p)
    assert min(abs(interval.low), abs(interval.high)) == pytest.approx(0, abs=1e-6)


def test_one_seed_has_no_interval_over_seeds(random):
    assert seeds_interval(np.array([0.3]), random.random((50, 1)), 0.95) is None
    assert seeds_interval(np.full(3, 0.3), np.full((50, 3), 0.3), 0.95) is None


def test_a_difference_beyond_all_doubt_has_the_least_p(random):
    drawn = np.tile(random.normal(0.5, 1e-4, size=(200, 1)), (1, 3))
    assert 0 < seeds_interval(np.full(3, 0.5), drawn, 0.95).p <= 1e-12


# --- tests of pairs


def enumerated(rows, seeds, aggregation=MACRO):
    """p of all 2^Q swaps, without the one that is added for the draws."""
    queries = len(rows[0])

    def difference(swapped):
        found = 0.0
        for seed in range(seeds):
            pair = [list(rows[seed]), list(rows[seeds + seed])]
            for place in range(queries):
                if swapped[place]:
                    pair[0][place], pair[1][place] = pair[1][place], pair[0][place]
            found += aggregate(aggregation, pair[0]) - aggregate(aggregation, pair[1])
        return abs(found / seeds)

    seen = difference([0] * queries)
    others = [difference(swapped) for swapped in product((0, 1), repeat=queries)]
    return np.mean([other >= seen - 1e-9 for other in others])


@pytest.mark.parametrize("seeds", [1, 2])
def test_swaps_of_a_macro_f1_are_all_those_there_are(random, seeds):
    right = random.random((2 * seeds, 8)) < np.repeat([0.9, 0.3], seeds)[:, None]
    rows = answers(random, right)
    exact = enumerated(rows, seeds)
    assert 0.01 < exact < 0.9
    first, second = list(range(seeds)), list(range(seeds, 2 * seeds))
    found = swap_test(macro(rows), [(first, second)], 20_000, 0)
    assert found[0] == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("kind", ["counts", "numbers"])
def test_swaps_of_a_mean_are_the_sign_flips_of_scipy(random, kind):
    values = random.random((2, 9)) + np.array([[0.25], [0.0]])
    if kind == "counts":
        values = (values > 0.6).astype(float)
    known = stats.permutation_test(
        (values[0], values[1]),
        lambda one, other, axis: (one - other).mean(axis=axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
        axis=-1,
    ).pvalue
    found = swap_test(means(values), [([0], [1])], 20_000, 3)
    assert found[0] == pytest.approx(known, abs=0.015)


def test_p_counts_the_draws_as_they_are(random):
    far = means([np.ones(400), np.zeros(400)])
    assert swap_test(far, [([0], [1])], 999, 0)[0] == pytest.approx(1 / 1000)
    alike = means([np.ones(400), np.ones(400)])
    assert swap_test(alike, [([0], [1])], 999, 0)[0] == 1


def test_p_does_not_depend_on_the_order_or_the_other_pairs(random):
    sums = means(random.random((3, 50)) + np.array([[0.1], [0.0], [0.05]]))
    pairs = [([0], [1]), ([1], [0]), ([0], [2]), ([0], [1])]
    found = swap_test(sums, pairs, 777, 0)
    assert found[0] == found[1] == found[3]
    assert found[2] == swap_test(sums, [([0], [2])], 777, 0)[0]
    assert found[0] != swap_test(sums, [([0], [1])], 777, 1)[0]


def test_ties_by_rounding_count(random):
    # Thirds add up differently in different orders; every swap of one query is a tie.
    values = np.zeros((2, 6))
    values[0] = 1 / 3
    exact = 2 / 64
    assert swap_test(means(values), [([0], [1])], 20_000, 0)[0] == pytest.approx(exact, abs=0.005)


def test_pairs_of_unequal_seeds_are_refused(random):
    sums = means(random.random((3, 5)))
    for pair in (([0, 1], [2]), ([], [])):
        with pytest.raises(ValueError, match="the same seeds of both"):
            swap_test(sums, [pair], 10, 0)
    with pytest.raises(ValueError, match="resamples"):
        swap_test(sums, [([0], [1])], 0, 0)


def test_mcnemar_is_the_exact_binomial_test(random):
    first, second = random.random(80) < 0.7, random.random(80) < 0.5
    one, other, p = mcnemar_test(first, second)
    assert one == sum(a and not b for a, b in zip(first, second, strict=True))
    assert other == sum(b and not a for a, b in zip(first, second, strict=True))
    assert p == pytest.approx(stats.binomtest(one, one + other).pvalue)
    assert mcnemar_test(first, first)[2] == 1
    with pytest.raises(ValueError, match="the same queries"):
        mcnemar_test(first, second[:-1])


def test_corrections_by_hand():
    holm, benjamini_hochberg = corrected([0.01, 0.04, 0.03, 0.8])
    assert holm == pytest.approx([0.04, 0.09, 0.09, 0.8])
    assert benjamini_hochberg == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.8])
    assert [len(one) for one in corrected([])] == [0, 0]


# --- sizes


def test_effect_of_a_mean_is_cohens_d_of_pairs(random):
    values = random.normal(size=(2, 33)) + np.array([[0.4], [0.0]])
    found = resample([means(values)], 2, 0)[0]
    difference = (values[0] - values[1]).astype(np.float32)
    d = effect_size(found.point[0] - found.point[1], found.jackknife[:, 0] - found.jackknife[:, 1])
    assert d == pytest.approx(difference.mean() / difference.std(ddof=1), rel=1e-5)


def test_effect_of_an_f1_does_not_grow_with_the_test_set(random):
    rows = answers(random, random.random((2, 50)) < [[0.9], [0.4]])
    sizes = []
    for times in (4, 64):
        found = resample([macro([run * times for run in rows])], 2, 0)[0]
        jackknife = found.jackknife[:, 0] - found.jackknife[:, 1]
        sizes.append(effect_size(found.point[0] - found.point[1], jackknife))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)
    assert sizes[0] > 0.2


def test_a_detectable_difference_has_power_four_fifths(random):
    values = random.normal(size=200)
    found = resample([means([values])], 2, 0)[0]
    difference = detectable_difference(found.jackknife[:, 0], 0.95)
    shift = difference / values.std(ddof=1) * np.sqrt(200)
    bound = stats.t.ppf(0.975, 199)
    power = stats.nct.sf(bound, 199, shift) + stats.nct.cdf(-bound, 199, shift)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_without_spread_there_are_no_sizes():
    assert effect_size(0.0, np.zeros(9)) is None
    assert detectable_difference(np.zeros(9), 0.95) is None
    assert detectable_difference(np.array([0.5]), 0.95) is None


# --- honesty: what is claimed with 95 % holds that often, at small test sets


def simulated(random, kind, queries, seeds, seed_spread=0.0):
    """Two systems that are alike: answers right by the query, the seed and chance."""
    ease = 0.8 + random.normal(0, 1, queries)
    shift = random.normal(0, seed_spread, (2 * seeds, 1))
    right = ease + shift + random.normal(0, 0.7, (2 * seeds, queries)) > 0
    return means(right) if kind == "mean" else macro(answers(random, right))


def too_often(hits, trials, rate):
    """Whether so many hits come about with a chance below 1 in 1000."""
    return stats.binom.sf(hits - 1, trials, rate) < 0.001


@pytest.mark.parametrize("kind", ["mean", "macro"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_alike_systems_are_told_apart_no_more_often_than_said(random, kind, seeds):
    trials, first, second = 300, list(range(seeds)), list(range(seeds, 2 * seeds))
    hits = sum(
        swap_test(simulated(random, kind, 25, seeds), [(first, second)], 199, trial)[0] <= 0.05
        for trial in range(trials)
    )
    assert not too_often(hits, trials, 0.05)


@pytest.mark.parametrize("kind", ["mean", "macro"])
def test_over_seeds_alike_systems_are_told_apart_no_more_often_than_said(random, kind):
    trials, hits, naive = 200, 0, 0
    for trial in range(trials):
        sums = simulated(random, kind, 200, 3, seed_spread=0.3)
        found = resample([sums], 200, trial)[0]
        point, drawn = found.point[:3] - found.point[3:], found.bootstrap[:, :3]
        hits += seeds_interval(point, drawn - found.bootstrap[:, 3:], 0.95).p <= 0.05
        naive += swap_test(sums, [([0, 1, 2], [3, 4, 5])], 199, trial)[0] <= 0.05
    assert not too_often(hits, trials, 0.05)
    # What the test with fixed seeds claims of trained models must not be claimed of methods.
    assert too_often(naive, trials, 0.2)


def test_intervals_hold_the_truth_as_often_as_said(random):
    trials, missed, over_seeds = 300, 0, 0
    truth = ndtr(0.8 / np.sqrt(1 + 0.7**2))  # of the ease of a query and chance; seeds are alike
    for trial in range(trials):
        # The truth with these seeds' share of chance, which is alike in all: no spread of seeds.
        found = resample([simulated(random, "mean", 80, 3)], 400, trial)[0]
        point, drawn, without = (
            a[..., :3] for a in (found.point, found.bootstrap, found.jackknife)
        )
        truth = ndtr(0.8 / np.sqrt(1 + 0.7**2))
        one = bca_interval(point.mean(), drawn.mean(1), without.mean(1), 0.95)
        missed += not one.low <= truth <= one.high
        other = seeds_interval(point, drawn, 0.95)
        over_seeds += not other.low <= truth <= other.high
    assert not too_often(missed, trials, 0.06)  # the BCa interval comes near its level, n = 80
    assert not too_often(over_seeds, trials, 0.05)

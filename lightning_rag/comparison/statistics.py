"""Intervals and tests for figures that are made of what single queries add to them.

All of it is pure arithmetic on arrays. Q queries, R runs, B resamples, G seeds.

There are two questions, and a figure can be sure for one and open for the other:

- **These trained models on other queries**: the queries are drawn again, the runs are fixed.
  `bca_interval` and `swap_test`.
- **The method, trained once more, on other queries**: seeds and queries are drawn again.
  `seeds_interval`. With few seeds it is wide, and has to be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special  # type: ignore[import-untyped]
from scipy.optimize import brentq  # type: ignore[import-untyped]
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]
from statsmodels.stats.power import TTestPower  # type: ignore[import-untyped]

Floats = NDArray[np.float64]
Finish = Callable[[NDArray[np.floating]], NDArray[np.floating]]

BLOCK = 500  # resamples at a time: bounds the memory, and the draws stay in the cache
# Equal statistics of two swaps differ by rounding; this share of the figure counts as equal.
TIE = 1e-6
POWER = 0.8
LEAST_P = 1e-12  # smaller ones are not told apart


@dataclass(frozen=True)
class Sums:
    """What each query adds to a figure, in every run.

    Args:
        values: (R, Q, d) float32.
        finish: (…, d) sums over queries -> (…) the figure.

    Raises:
        ValueError: another shape, or no query.
    """

    values: NDArray[np.float32]
    finish: Finish

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.values.shape[1] == 0:
            raise ValueError(
                f"values: expected (runs, queries, columns), got shape {self.values.shape}"
            )

    def totals(self) -> Floats:
        """Return the sums over the queries, (R, d)."""
        totals: Floats = self.values.sum(axis=1, dtype=np.float64)
        return totals


@dataclass(frozen=True)
class Resampled:
    """A figure of every run, as it is and on other queries.

    Args:
        point: (R,) on the queries themselves.
        bootstrap: (B, R) on resamples of the queries, the same for all runs.
        jackknife: (Q, R) without one query.
    """

    point: Floats
    bootstrap: Floats
    jackknife: Floats


@dataclass(frozen=True)
class Interval:
    """Where a figure lies, with the confidence asked for."""

    low: float
    high: float


@dataclass(frozen=True)
class SeedsInterval:
    """An interval that holds for other seeds and other queries.

    Args:
        low: its lower end.
        high: its upper end.
        p: of the test, two-sided, that the figure is 0: 0 is outside the interval where p is below
            1 - confidence.
    """

    low: float
    high: float
    p: float


def resample(figures: Sequence[Sums], resamples: int, seed: int) -> list[Resampled]:
    """Compute figures again on resamples of the queries and without each of them.

    A resample draws Q queries with replacement, the same ones for all runs and figures: so runs are
    compared on equal queries. One product of the drawn counts with all columns serves them all.

    Args:
        figures: of the same R runs on the same Q queries.
        resamples: B.
        seed: of the draws.

    Raises:
        ValueError: the figures are not of the same queries, or there is no resample.
    """
    queries = _queries(figures)
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    columns = np.concatenate([_columns(one) for one in figures], axis=1)  # (Q, sum of R d)
    found = [np.empty((resamples, len(one.values))) for one in figures]
    for start, counts in _draws(queries, resamples, seed):
        products = counts @ columns  # (block, sum of R d)
        for one, into, sums in zip(figures, found, _parted(figures, products), strict=True):
            into[start : start + len(counts)] = one.finish(sums.astype(np.float64))
    return [
        Resampled(one.finish(one.totals()).astype(np.float64), drawn, _jackknife(one))
        for one, drawn in zip(figures, found, strict=True)
    ]


def bca_interval(
    point: float, bootstrap: Floats, jackknife: Floats, confidence: float
) -> Interval | None:
    """Return the bias-corrected and accelerated bootstrap interval.

    Source: Efron 1987, as Efron & Tibshirani 1993, equations 14.9 to 14.15; the numbers are those
    of `scipy.stats.bootstrap(method="BCa")`, which would resample anew for every system and pair.

    Args:
        point: the figure on the queries themselves.
        bootstrap: (B,) on resamples of the queries.
        jackknife: (Q,) without one query.
        confidence: in (0, 1).

    Returns:
        The interval; None where the queries do not vary, so that the resamples say nothing.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    tails = special.ndtri(np.array([_alpha(confidence) / 2, 1 - _alpha(confidence) / 2]))
    influence = jackknife.mean() - jackknife  # (Q,) in 1 / (Q - 1) of Efron's
    spread = (influence**2).sum()
    if _constant(bootstrap) or _constant(jackknife):
        return None
    # Half of those equal to the point are below it: figures of counts have many such.
    below = ((bootstrap < point).mean() + (bootstrap <= point).mean()) / 2
    bias = special.ndtri(below)
    acceleration = (influence**3).sum() / (6 * spread**1.5)
    shifted = bias + tails
    levels = special.ndtr(bias + shifted / (1 - acceleration * shifted))
    if not np.isfinite(levels).all():
        return None
    low, high = np.quantile(bootstrap, levels)
    return Interval(float(low), float(high))


def seeds_interval(point: Floats, bootstrap: Floats, confidence: float) -> SeedsInterval | None:
    """Return the interval that holds for other seeds and other queries.

    The variance is that of the cluster bootstrap, which draws seeds and queries with replacement,
    both at once (Owen 2007, the pigeonhole bootstrap). A mean over seeds is linear in the seeds, so
    their draws need not be made: with one seed less than there are in a draw (Rao & Wu 1988), as
    few of them need it, the variance is

        V_seeds + V_queries + 2 V_both,

    V_seeds the variance of the seeds' figures over G, V_queries that of the mean over seeds on
    resamples of the queries, and V_both what chance adds to every query of every seed anew. Each of
    the first two holds V_both already, so that it counts three times; it is brought down to once.

    The ends are not percentiles of this bootstrap: those stay between the worst and the best seed,
    and three seeds enclose the truth in three of four cases only. The seeds' part of the variance
    gets Student's t with G - 1 degrees of freedom, what the queries add to it the normal
    distribution, and the squares of the two add up. So the interval is wide with few seeds: at 95 %
    t is 4.3 for three and 12.7 for two.

    Args:
        point: (G,) the figure of each seed.
        bootstrap: (B, G) on resamples of the queries.
        confidence: in (0, 1).

    Returns:
        The interval, never narrower than the normal one with fixed seeds; None with one seed, or
        where nothing varies.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    alpha, seeds = _alpha(confidence), len(point)
    if seeds < 2 or _constant(bootstrap):
        return None
    of_seeds = float(point.var(ddof=1)) / seeds
    of_queries = float(bootstrap.mean(axis=1).var(ddof=1))
    # Of a single seed's variance the mean over seeds keeps what the seeds share, and 1 / G of both.
    of_both = max(float(bootstrap.var(axis=0, ddof=1).mean()) - of_queries, 0.0) / (seeds - 1)
    added = max(of_queries - of_both, 0.0)

    def reach(level: float) -> float:
        """Return half the width at a level, the probability outside."""
        t, z = -special.stdtrit(seeds - 1, level / 2), -special.ndtri(level / 2)
        return math.sqrt(max(t**2 * of_seeds + z**2 * added, z**2 * of_queries))

    value = float(point.mean())
    # The level at which 0 is just at the end; below the least one it is as good as 0.
    inside = reach(LEAST_P) >= abs(value)
    p = brentq(lambda level: reach(level) - abs(value), LEAST_P, 1.0) if inside else LEAST_P
    return SeedsInterval(value - reach(alpha), value + reach(alpha), float(p))


def swap_test(
    sums: Sums, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], resamples: int, seed: int
) -> Floats:
    """Test every pair of systems by swapping their answers.

    If two systems are alike, whose answer to a query is whose does not matter. So for each query a
    coin decides whether the two are swapped, in all seeds at once, and the difference of the
    figures is computed again: p = (c + 1) / (B + 1), where c resamples of B show a difference at
    least as large, in either direction (Phipson & Smyth 2010). For a mean over queries this is the
    paired sign-flip test; for an F1 it is the approximate randomisation of Yeh 2000. Runs are
    fixed: it says nothing about other seeds. The coins are the same for all pairs.

    Args:
        sums: of R runs.
        pairs: for each pair the G runs of the first and those of the second system, seed by seed.
        resamples: B.
        seed: of the coins.

    Returns:
        p of each pair.

    Raises:
        ValueError: there is no resample, or a pair is not of as many runs on both sides.
    """
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    for first, second in pairs:
        if not first or len(first) != len(second):
            raise ValueError(f"pairs: expected the same seeds of both, got {first} and {second}")
    totals, columns = sums.totals(), _columns(sums)
    figures = sums.finish(totals)
    sides = [(list(first), list(second)) for first, second in pairs]
    seen = [abs(float((figures[a] - figures[b]).mean())) for a, b in sides]
    ties = [TIE * float(abs(figures[[*a, *b]]).max()) for a, b in sides]
    reached = np.zeros(len(sides), dtype=np.int64)
    for coins in _coins(sums.values.shape[1], resamples, seed):
        product = (coins @ columns).astype(np.float64).reshape(len(coins), *totals.shape)
        for place, (a, b) in enumerate(sides):
            middle = (totals[a] + totals[b]) / 2  # (G, d)
            half = (product[:, a] - product[:, b]) / 2  # (block, G, d)
            difference = sums.finish(middle + half) - sums.finish(middle - half)  # (block, G)
            found = abs(difference.mean(axis=1)) >= seen[place] - ties[place]
            reached[place] += np.count_nonzero(found)
    return (reached + 1) / (resamples + 1)


def mcnemar_test(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> tuple[int, int, float]:
    """Test two systems of which each is right or wrong for a query, by the exact test of McNemar.

    Args:
        first: (Q,) where the first system is right.
        second: (Q,) where the second is.

    Returns:
        The numbers of queries for which only the first and only the second is right, and p,
        two-sided (statsmodels).

    Raises:
        ValueError: the shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"expected the same queries, got {first.shape} and {second.shape}")
    one, other = int((first & ~second).sum()), int((second & ~first).sum())
    table = [[int((first & second).sum()), one], [other, int((~first & ~second).sum())]]
    return one, other, float(mcnemar(table, exact=True).pvalue)


def corrected(p: Sequence[float]) -> tuple[Floats, Floats]:
    """Correct p values for their number (statsmodels).

    Returns:
        By Holm 1979, for the chance of any false positive, and by Benjamini & Hochberg 1995, for
        the share of false ones among the positives.
    """
    if not p:
        return np.empty(0), np.empty(0)
    return multipletests(p, method="holm")[1], multipletests(p, method="fdr_bh")[1]


def effect_size(point: float, jackknife: Floats) -> float | None:
    """Return a difference in units of its spread over queries.

    It is the paired d_z of Cohen 1988 (section 2.3.5), of the jackknife's pseudo-values
    Q t - (Q - 1) t_(-j) (Tukey 1958): what each query contributes to the difference t. Of a mean
    these are the differences of the single queries, so that this is d_z itself; of an F1 they are
    its linear part. Unlike the difference over its standard error it does not grow with the test
    set.

    Args:
        point: the difference t.
        jackknife: (Q,) the difference without one query, t_(-j).

    Returns:
        d_z; None where the queries do not vary.
    """
    spread = _spread(jackknife)
    return None if spread is None else point / spread


def detectable_difference(jackknife: Floats, confidence: float) -> float | None:
    """Return the smallest true difference that such queries would show with power 0.8.

    By the power of the paired t test (statsmodels), two-sided and for one pair alone: after a
    correction for many pairs it takes more.

    Args:
        jackknife: (Q,) the difference of two systems without one query.
        confidence: 1 - the level of the test.

    Returns:
        The difference, in units of the figure; None where the queries do not vary.

    Raises:
        ValueError: a confidence outside (0, 1).
    """
    alpha, spread = _alpha(confidence), _spread(jackknife)
    if spread is None:
        return None
    solved = TTestPower().solve_power(nobs=len(jackknife), alpha=alpha, power=POWER)
    return float(np.asarray(solved).item()) * spread


def _spread(jackknife: Floats) -> float | None:
    """Return the standard deviation of the pseudo-values."""
    if len(jackknife) < 2 or _constant(jackknife):
        return None
    return float((len(jackknife) - 1) * jackknife.std(ddof=1))


def _alpha(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    return 1 - confidence


def _constant(values: Floats) -> bool:
    """Whether values differ by rounding alone."""
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(abs(values).max())))


def _queries(figures: Sequence[Sums]) -> int:
    sizes: set[int] = {one.values.shape[1] for one in figures}
    if len(sizes) != 1:
        raise ValueError(f"figures: expected the same queries for all, got {sorted(sizes)} of them")
    return sizes.pop()


def _columns(sums: Sums) -> NDArray[np.float32]:
    """Return (Q, R d): all that the queries add, side by side."""
    values = sums.values.astype(np.float32, copy=False)
    return np.ascontiguousarray(values.transpose(1, 0, 2).reshape(values.shape[1], -1))


def _parted(
    figures: Sequence[Sums], products: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Part (block, sum of R d) into the figures' (block, R, d)."""
    start = 0
    for one in figures:
        runs, _, width = one.values.shape
        yield products[:, start : start + runs * width].reshape(-1, runs, width)
        start += runs * width


def _jackknife(sums: Sums) -> Floats:
    """Return the figures without one query each, (Q, R)."""
    totals, values = sums.totals(), sums.values
    found = np.empty((values.shape[1], values.shape[0]))
    for start in range(0, values.shape[1], BLOCK):
        without = totals[:, None] - values[:, start : start + BLOCK]  # (R, block, d)
        found[start : start + BLOCK] = sums.finish(without).T
    return found


def _draws(queries: int, resamples: int, seed: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield how often each query is drawn: the first resample's number, and (block, Q)."""
    random = np.random.default_rng([seed, 0])
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        drawn = random.integers(queries, size=(size, queries))
        drawn += np.arange(size)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=size * queries)
        yield start, counts.reshape(size, queries).astype(np.float32)


def _coins(queries: int, resamples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Yield (block, Q) of 1 and -1."""
    random = np.random.default_rng([seed, 2])
    for start in range(0, resamples, BLOCK):
        size = min(BLOCK, resamples - start)
        coins = random.integers(2, size=(size, queries), dtype=np.int8)
        yield coins.astype(np.float32) * 2 - 1

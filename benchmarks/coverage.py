"""How often intervals hold the truth and tests find what is not there, by simulation.

Two systems are made alike: an answer is right by the ease of its query, the luck of its seed and
chance (a probit model). So the difference is 0, and a system's figure is known. Counted are the
intervals that miss, at 95 %, and the tests with p <= 0.05; beside them stand the percentiles of the
plain cluster bootstrap, which `compare` does not use.

    python benchmarks/coverage.py [--trials N] [--resamples N]
"""

from __future__ import annotations

import argparse
from functools import partial

import numpy as np

from lightning_rag.comparison.statistics import (
    Sums,
    bca_interval,
    resample,
    seeds_interval,
    swap_test,
)
from lightning_rag.metrics.counts import MEAN, Aggregation, figure

MACRO = Aggregation("f1", "macro")
SHARES = np.array([0.4, 0.3, 0.15, 0.1, 0.05])  # of the classes
EASE, CHANCE, BAR = 1.0, 0.7, 0.8
# (queries, seeds, luck of a seed): standard deviations in units of the probit model
CASES = (
    *((30, 1, 0.0), (100, 1, 0.0), (100, 3, 0.0), (100, 3, 0.1), (300, 3, 0.1)),
    *((300, 3, 0.3), (1000, 5, 0.1), (1000, 2, 0.1)),
)


def right(random, queries, seeds, luck):
    """Whether each of two systems' runs answers each query rightly, (2 G, Q)."""
    ease = BAR + random.normal(0, EASE, queries)
    shift = random.normal(0, luck, (2 * seeds, 1))
    return ease + shift + random.normal(0, CHANCE, (2 * seeds, queries)) > 0


def accuracy(random, answers):
    values = answers.astype(np.float32)
    return Sums(np.stack([values, np.ones_like(values)], axis=-1), partial(figure, MEAN))


def macro_f1(random, answers):
    """The macro F1 of answers that are the gold class, or drawn like the gold classes."""
    runs, queries = answers.shape
    gold = random.choice(len(SHARES), size=queries, p=SHARES)
    said = np.where(answers, gold, random.choice(len(SHARES), size=answers.shape, p=SHARES))
    classes = np.arange(len(SHARES))
    predicted = said[..., None] == classes  # (R, Q, C)
    wanted = np.broadcast_to(gold[:, None] == classes, predicted.shape)
    counts = np.stack([predicted & wanted, predicted, wanted, predicted | wanted], axis=-1)
    return Sums(counts.reshape(runs, queries, -1).astype(np.float32), partial(figure, MACRO))


def truth(random, make, luck):
    """The figure of a system, mean over many seeds with many queries each."""
    found = []
    for _ in range(400):
        sums = make(random, right(random, 5000, 1, luck))
        found.append(sums.finish(sums.totals()).mean())
    return float(np.mean(found))


def percentiles(random, bootstrap):
    """The interval of the plain cluster bootstrap."""
    resamples, seeds = bootstrap.shape
    drawn = random.multinomial(seeds, [1 / seeds] * seeds, size=resamples) / seeds
    return np.quantile((bootstrap * drawn).sum(axis=1), [0.025, 0.975])


def trial(random, make, case, known, resamples, seed):
    """Whether each interval holds, and each test rejects; None where there is none."""
    queries, seeds, luck = case
    sums = make(random, right(random, queries, seeds, luck))
    found = resample([sums], resamples, seed)[0]
    one, other = slice(0, seeds), slice(seeds, None)
    held = {}
    for name, value, of in (
        ("system", known, lambda figures: figures[..., one]),
        ("difference", 0.0, lambda figures: figures[..., one] - figures[..., other]),
    ):
        point, drawn, without = of(found.point), of(found.bootstrap), of(found.jackknife)
        bca = bca_interval(point.mean(), drawn.mean(axis=1), without.mean(axis=1), 0.95)
        held[f"{name}, queries"] = bca and bca.low <= value <= bca.high
        over = seeds_interval(point, drawn, 0.95)
        held[f"{name}, seeds too"] = over and over.low <= value <= over.high
        low, high = percentiles(random, drawn)
        held[f"{name}, percentiles"] = low <= value <= high if seeds > 1 else None
    held["p over seeds"] = over and over.p <= 0.05
    places = list(range(2 * seeds))
    held["p"] = swap_test(sums, [(places[:seeds], places[seeds:])], resamples, seed)[0] <= 0.05
    return held


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=600)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    for make in (accuracy, macro_f1):
        known = {}
        for case in CASES:
            random = np.random.default_rng(0)
            if case[2] not in known:
                known[case[2]] = truth(random, make, case[2])
            seen = [
                trial(random, make, case, known[case[2]], options.resamples, number)
                for number in range(options.trials)
            ]
            told = []
            for name in seen[0]:
                values = [one[name] for one in seen if one[name] is not None]
                told.append(f"{name} {np.mean(values):.3f}" if values else f"{name} –")
            print(f"{make.__name__}, Q {case[0]}, G {case[1]}, luck {case[2]}: {'; '.join(told)}")


if __name__ == "__main__":
    main()

"""Figures read from the rows of runs, resampled together, and their contrasts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_rag.comparison.measured import (
    ENDS,
    aggregation_of,
    intervals_note,
    measurable,
    measure,
    sums_of,
)
from lightning_rag.comparison.runs import System, read, systems
from lightning_rag.errors import DataError
from lightning_rag.metrics.counts import aggregate

OTHER = (0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0)
DRAWS = {"resamples": 300, "confidence": 0.95, "seed": 0}


@pytest.fixture
def two(write_run):
    """Two systems of two seeds."""
    folders = [write_run(seed=0), write_run(seed=3, right=(1,) * 10 + (0,) * 2)]
    folders += [write_run("NoRetrieval", seed=seed, right=OTHER) for seed in (0, 3)]
    return systems([read(folder) for folder in folders])


def changed(system, counts, **test):
    """The system with other counts in every row, and other figures."""
    runs = []
    for run in system.runs:
        rows = [{**row, "counts": counts(place, row)} for place, row in enumerate(run.rows)]
        runs.append(replace(run, rows=rows, test={**run.test, **test}))
    return System(system.name, tuple(runs))


def test_a_system_has_the_mean_and_the_spread_of_its_seeds(two):
    measured = measure(two, ["accuracy"], **DRAWS)["accuracy"]
    estimate = measured.contrast({"rag4re": 1.0})
    assert estimate.seeds == pytest.approx((8 / 12, 10 / 12))
    assert estimate.value == pytest.approx(9 / 12)
    assert estimate.deviation == pytest.approx(np.std([8 / 12, 10 / 12], ddof=1))
    assert measured.queries == 12
    assert measured.seeds == (0, 3)


def test_a_difference_is_seed_by_seed_on_the_same_resamples(two):
    measured = measure(two, ["accuracy"], **DRAWS)["accuracy"]
    difference = measured.contrast({"rag4re": 1.0, "noretrieval": -1.0})
    assert difference.seeds == pytest.approx((8 / 12 - 7 / 12, 10 / 12 - 7 / 12))
    drawn = measured.resampled.bootstrap
    by_hand = (drawn[:, :2] - drawn[:, 2:]).mean(axis=1)
    assert by_hand.min() <= difference.queries.low < difference.queries.high <= by_hand.max()
    # Paired: the queries that both have right drop out, so it is surer than the two by themselves.
    apart = [measured.contrast({name: 1.0}).queries for name in measured.names]
    width = difference.queries.high - difference.queries.low
    assert width < sum(one.high - one.low for one in apart)


def test_leaving_a_query_out_is_a_naive_loop(two):
    measured = measure(two, ["f1"], **DRAWS)["f1"]
    without = measured.jackknife({"rag4re": 1.0, "noretrieval": -2.0})
    for place in (0, 11):
        figures = []
        for system in two:
            left = [[r["counts"]["f1"] for r in run.rows] for run in system.runs]
            how = aggregation_of(system.runs[0], "f1")
            figures.append(
                np.mean([aggregate(how, rows[:place] + rows[place + 1 :]) for rows in left])
            )
        assert without[place] == pytest.approx(figures[0] - 2 * figures[1])


def test_one_seed_has_no_spread_and_no_interval_over_seeds(write_run):
    one = systems([read(write_run()), read(write_run("NoRetrieval", right=OTHER))])
    estimate = measure(one, ["f1"], **DRAWS)["f1"].contrast({"rag4re": 1.0})
    assert estimate.deviation is None
    assert estimate.training is None
    assert estimate.ends == (estimate.queries.low, estimate.queries.high, None, None)
    assert len(ENDS) == len(estimate.ends)
    assert "One seed" in intervals_note(0.95, 1) or "one seed" in intervals_note(0.95, 1)
    assert "90 % confidence" in intervals_note(0.9, 3)


def test_a_metric_is_measurable_where_all_runs_count_it(two):
    assert measurable(two) == ("accuracy", "f1", "recall@1")  # not mrr, which no row counts
    test = {name: value for name, value in two[1].runs[1].test.items() if name != "accuracy"}
    runs = (two[1].runs[0], replace(two[1].runs[1], test=test))
    assert measurable([two[0], System("b", runs)]) == ("f1", "recall@1")


def test_queries_that_count_in_no_run_are_left_out(two):
    asked = [
        changed(system, lambda place, row: row["counts"] if place % 2 else {}, accuracy=1.0)
        for system in two
    ]
    with pytest.raises(DataError, match="test the run again"):
        sums_of(asked, "accuracy")
    means = [
        System(
            system.name,
            tuple(
                replace(run, test={"accuracy": np.mean([r["counts"]["accuracy"] for r in rows])})
                for run in system.runs
                for rows in [[row for row in run.rows if row["counts"]]]
            ),
        )
        for system in asked
    ]
    assert sums_of(means, "accuracy").values.shape == (4, 6, 2)


def test_a_class_that_one_run_never_names_has_its_columns_there_too(two):
    aggregations = {"f1": {"kind": "f1", "average": "macro", "over": "occurring"}}
    summary = {**two[0].runs[0].summary, "metrics": {"aggregations": aggregations}}

    def rows(names):
        counts = [{"f1": {name: [1, 1, 1]}} for name in names]
        return [{"counts": added} for added in counts]

    def run(names, figure):
        base = two[0].runs[0]
        return replace(base, rows=rows(names), test={"f1": figure}, summary=summary)

    one, other = run("aab", 1.0), run("abc", 1.0)
    sums = sums_of([System("one", (one,)), System("other", (other,))], "f1")
    assert sums.values.shape == (2, 3, 12)
    assert sums.finish(sums.totals()).tolist() == [1.0, 1.0]


def test_figures_that_are_not_those_of_the_rows_are_refused(two):
    wrong = changed(two[0], lambda place, row: row["counts"], f1=0.123)
    with pytest.raises(DataError, match=r"metrics.json says f1 = 0.123, but the rows") as caught:
        measure([wrong, two[1]], ["f1"], **DRAWS)
    assert str(wrong.runs[0].folder) in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("f1", "row 1: counts: expected an object, got 'f1'"),
        ({"f1": 0.5}, r"counts of f1: expected {class: \[correct, predicted, gold\]}"),
        (
            {"f1": {"rel_wrote": [1, 1]}},
            "correct, predicted, gold. for class 'rel_wrote'",
        ),
        ({"f1": {"rel_wrote": [1, float("nan"), 1]}}, "expected finite numbers"),
        ({"f1": {"rel_wrote": ["one", 1, 1]}}, "is damaged: counts of f1"),
        ({"f1": {"rel_wrote": 1}}, "is damaged: counts of f1"),
        ({}, "no query says what it adds to f1"),
    ],
)
def test_damaged_counts_name_the_file(two, counts, message):
    damaged = [changed(system, lambda place, row: counts) for system in two]
    with pytest.raises(DataError, match=message) as caught:
        measure(damaged, ["f1"], **DRAWS)
    assert str(two[0].runs[0].folder / "predictions.jsonl") in str(caught.value)


@pytest.mark.parametrize("how", ["mean", {"kind": "median"}, {"average": "macro"}, {"kind": []}])
def test_an_unknown_aggregation_names_the_file(two, how):
    metrics = {**two[0].runs[0].summary["metrics"], "aggregations": {"f1": how}}
    run = replace(two[0].runs[0], summary={**two[0].runs[0].summary, "metrics": metrics})
    with pytest.raises(DataError, match=r"summary.json: metrics.aggregations.f1") as caught:
        aggregation_of(run, "f1")
    assert str(run.folder) in str(caught.value)

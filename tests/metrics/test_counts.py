"""How test figures come out of what single queries add: against scikit-learn and naive loops."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from lightning_rag.metrics.counts import (
    MEAN,
    Aggregation,
    Count,
    aggregate,
    classes,
    columns,
    figure,
)

MICRO = Aggregation("f1")
MACRO = Aggregation("f1", "macro")
GOLD = Aggregation("f1", "macro", "gold")


def naive(aggregation: Aggregation, rows: list[Count]) -> float:
    """The figure by loops over single queries and classes."""
    if aggregation.kind == "mean":
        numbers = [row for row in rows if isinstance(row, int | float)]
        return sum(numbers) / len(numbers) if numbers else 0.0
    sums: dict[str, list[int]] = {}
    for row in rows:
        for name, (correct, predicted, gold) in (row or {}).items():  # type: ignore[union-attr]
            old = sums.get(name, [0, 0, 0])
            sums[name] = [old[0] + correct, old[1] + predicted, old[2] + gold]
    if aggregation.average == "micro":
        sums = {"all": [sum(column) for column in zip(*sums.values(), strict=True)]} if sums else {}
    scores = []
    for correct, predicted, gold in sums.values():
        if aggregation.average == "macro" and aggregation.over == "gold" and not gold:
            continue
        precision = correct / predicted if predicted else 0.0
        recall = correct / gold if gold else 0.0
        both = precision + recall
        scores.append(2 * precision * recall / both if both else 0.0)
    return sum(scores) / len(scores) if scores else 0.0


def some_rows(draw: random.Random, size: int) -> list[Count]:
    rows: list[Count] = []
    for _ in range(size):
        row = {}
        for name in draw.sample("abcde", draw.randrange(3)):
            predicted, gold = draw.randrange(3), draw.randrange(3)
            row[name] = [draw.randint(0, min(predicted, gold)), predicted, gold]
        rows.append(draw.choice([row, row, row, None]))
    return rows


@pytest.mark.parametrize("aggregation", [MICRO, MACRO, GOLD])
@pytest.mark.parametrize("seed", range(20))
def test_f1_is_that_of_a_naive_loop(aggregation: Aggregation, seed: int) -> None:
    draw = random.Random(seed)
    rows = some_rows(draw, draw.randrange(12))
    assert aggregate(aggregation, rows) == pytest.approx(naive(aggregation, rows), abs=1e-12)


def test_a_mean_is_over_the_queries_that_have_a_number() -> None:
    assert aggregate(MEAN, [1, None, 0.5, 0]) == 0.5
    assert aggregate(MEAN, [None, None]) == 0
    assert aggregate(MEAN, []) == 0


@pytest.mark.parametrize("aggregation", [MICRO, MACRO, GOLD])
def test_nothing_counted_gives_0(aggregation: Aggregation) -> None:
    assert aggregate(aggregation, []) == 0
    assert aggregate(aggregation, [None, {}]) == 0
    assert aggregate(aggregation, [{"a": [0, 0, 0]}]) == 0


def test_macro_is_over_the_classes_that_are_named_or_over_those_that_are_gold() -> None:
    rows: list[Count] = [{"a": [1, 1, 1]}, {"b": [0, 1, 0]}, {"c": [0, 0, 0]}]
    assert aggregate(MACRO, rows) == pytest.approx(1 / 3)
    assert aggregate(GOLD, rows) == 1
    assert aggregate(MICRO, rows) == pytest.approx(2 / 3)


@pytest.mark.parametrize("aggregation", [MEAN, MICRO, MACRO, GOLD])
def test_resamples_by_weights_are_the_figures_of_the_resampled_rows(
    aggregation: Aggregation,
) -> None:
    draw, size = random.Random(0), 15
    rows = some_rows(draw, size)
    if aggregation is MEAN:
        rows = [draw.choice([None, draw.random()]) for _ in range(size)]
    drawn = [[draw.randrange(size) for _ in range(size)] for _ in range(30)]
    weights = np.array([[picks.count(row) for row in range(size)] for picks in drawn])
    found = figure(aggregation, weights @ columns(aggregation, rows))
    expected = [naive(aggregation, [rows[row] for row in picks]) for picks in drawn]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_columns_say_which_class_they_are_of() -> None:
    rows: list[Count] = [{"b": [1, 1, 1]}, None, {"a": [0, 1, 0]}]
    assert classes(rows) == ("a", "b")
    expected = [[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8, [0, 1, 0, 1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(columns(MACRO, rows), expected)
    assert columns(MICRO, []).shape == (0, 3)
    assert columns(MEAN, []).shape == (0, 2)
    assert classes([1.0, None]) == ()


def test_figures_keep_the_precision_of_their_sums() -> None:
    for aggregation, width in ((MEAN, 2), (MICRO, 3), (MACRO, 8)):
        assert figure(aggregation, np.ones((4, 5, width), np.float32)).dtype == np.float32
        assert figure(aggregation, np.ones((4, 5, width), np.float32)).shape == (4, 5)


@pytest.mark.parametrize(
    ("aggregation", "row", "match"),
    [
        (MEAN, {"a": [1, 1, 1]}, "expected a number"),
        (MICRO, 1.0, "expected {class"),
        (MACRO, {"a": [1, 1]}, r"row 0: .* class 'a', got \[1, 1\]"),
    ],
)
def test_a_row_of_another_kind_is_refused(aggregation: Aggregation, row: Count, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        aggregate(aggregation, [row])


@pytest.mark.parametrize("aggregation", [MEAN, MICRO, MACRO, GOLD])
def test_json_holds_all_that_matters(aggregation: Aggregation) -> None:
    assert Aggregation.from_json(aggregation.to_json()) == aggregation


@pytest.mark.parametrize(
    "value", [None, "mean", {}, {"kind": "median"}, {"kind": "f1", "over": "all"}, {"mean": 1}]
)
def test_json_of_something_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        Aggregation.from_json(value)  # type: ignore[arg-type]


def test_reading_needs_no_torch() -> None:
    code = "import sys, lightning_rag.metrics.counts; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

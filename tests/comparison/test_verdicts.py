"""The sentences at the top of the report: which differences are real, by the names of systems."""

from __future__ import annotations

from lightning_rag.comparison.measured import Estimate
from lightning_rag.comparison.pairs import SHOWN, Pair, told


def pair(
    first: str, second: str, difference: float, holm: float, training: float | None = 1.0
) -> Pair:
    estimate = Estimate(difference, (difference,), None, None, None)
    return Pair(
        first, second, estimate, holm, holm, holm, training, training, 0.2, 0.05, level=0.05
    )


def test_each_pair_is_named_where_it_belongs_largest_first():
    pairs = [
        pair("a", "b", 0.1, 0.001, 0.01),
        pair("a", "c", -0.2, 0.001, 0.01),
        pair("b", "c", -0.3, 0.001, 0.2),
        pair("a", "d", -0.01, 0.6, 0.9),
    ]
    assert told(pairs) == (
        "Real, over other seeds too: c > a (0.200); a > b (0.100).",
        "Real with these seeds, not shown for other seeds: c > b (0.300).",
        "No measurable difference: d and a (0.010).",
    )


def test_what_is_sure_over_seeds_but_not_over_queries_is_not_called_real():
    pairs = [pair("a", "b", 0.1, 0.2, 0.001), pair("a", "c", 0.1, 0.2, 0.001)]
    (only,) = told(pairs)
    assert only.startswith("No measurable difference: ")


def test_one_seed_promises_nothing_about_others():
    pairs = [pair("a", "b", 0.1, 0.001, None), pair("a", "c", 0.0, 1.0, None)]
    assert told(pairs) == (
        "Real with this seed: a > b (0.100).",
        "No measurable difference: a and c (0.000).",
    )


def test_a_long_list_ends_with_how_many_there_are_more():
    pairs = [pair("a", f"s{n}", 0.5 - 0.01 * n, 0.001, 0.01) for n in range(SHOWN + 3)]
    (only,) = told(pairs)
    assert only.count(" > ") == SHOWN
    assert only.endswith("; and 3 pairs more.")


def test_one_pair_is_named_elsewhere():
    assert told([pair("a", "b", 0.1, 0.001)]) == ()

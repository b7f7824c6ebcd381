"""Every pair: the numbers are those of the tests, and the words say no more than the numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from lightning_rag.comparison import pairs
from lightning_rag.comparison.measured import measurable, measure
from lightning_rag.comparison.runs import read, systems
from lightning_rag.comparison.style import svg

DRAWS = {"resamples": 300, "confidence": 0.95, "seed": 0}
QUERIES = 60


def answers(*rates):
    random = np.random.default_rng(2)
    ease = random.random(QUERIES)
    return [(ease < rate).astype(int).tolist() for rate in rates]


@pytest.fixture
def measured(write_run):
    """Measure systems: {method: the answers of each seed}."""

    def build(**right):
        folders = [
            write_run(method, seed=seed, right=answers_)
            for method, seeds in right.items()
            for seed, answers_ in enumerate(seeds)
        ]
        compared = systems([read(folder) for folder in folders])
        return measure(compared, measurable(compared), **DRAWS)

    return build


def test_every_pair_is_tested_and_corrected(measured):
    good, middle, bad = answers(0.95, 0.6, 0.3)
    found = measured(Rag4re=[good] * 2, Etrag=[middle] * 2, NoRetrieval=[bad] * 2)
    table = pairs.section(found, "f1", 999, 0).tables[0]
    rows = {row[:2]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == list(combinations(("rag4re", "etrag", "noretrieval"), 2))
    p = sorted(row["p"] for row in rows.values())
    assert p[0] == 1 / 1000
    assert sorted(row["p, Holm"] for row in rows.values()) == pytest.approx(
        np.minimum(1, np.maximum.accumulate([p[0] * 3, p[1] * 2, p[2]])).tolist()
    )
    assert sorted(row["p, Benjamini–Hochberg"] for row in rows.values()) == pytest.approx(
        stats.false_discovery_control(p).tolist()
    )
    first = rows["rag4re", "etrag"]
    difference = np.mean(good) - np.mean(middle)
    assert first["difference of f1"] == pytest.approx(difference)
    assert first["low"] < difference < first["high"]
    assert first["in words"] == "rag4re is higher"
    spread = np.std(np.array(good) - np.array(middle), ddof=1)
    assert first["effect size d_z"] == pytest.approx(difference / spread, rel=1e-5)
    assert first["detectable difference"] == pytest.approx(
        (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * spread / np.sqrt(QUERIES), rel=0.03
    )


def test_equal_systems_have_no_measurable_difference(measured):
    right = answers(0.7)[0]
    found = pairs.section(measured(Rag4re=[right] * 3, Etrag=[right] * 3), "f1", 99, 0)
    row = dict(zip(found.tables[0].columns, found.tables[0].rows[0], strict=True))
    assert row["in words"] == "no measurable difference"
    assert row["p"] == row["p over seeds"] == 1
    assert row["low"] is row["effect size d_z"] is row["detectable difference"] is None
    assert found.summary == ("rag4re and etrag: no measurable difference.",)


def test_a_difference_that_never_varies_is_the_surest(measured):
    """Always right against never right: nothing to estimate a variance from, and yet no p of 1."""
    right, wrong = [1] * QUERIES, [0] * QUERIES
    found = measured(Rag4re=[right] * 3, Etrag=[wrong] * 3)
    pair = pairs.compared(found["f1"], 999, 0)[0]
    assert pair.difference.training is None
    assert pair.training_p < 1e-6
    assert pair.verdict == "rag4re is higher"
    alone = pairs.compared(measured(Dro=[right], Ruie=[wrong])["f1"], 999, 0)[0]
    assert alone.training_p is None
    assert alone.verdict == "dro is higher, with this seed"


@pytest.mark.parametrize(("draws", "enough"), [(58, False), (60, True)])
def test_too_few_draws_for_so_many_pairs_are_told(measured, draws, enough):
    """Three pairs: p is 1 / (draws + 1) at least, and Holm makes it three times that."""
    good, middle, bad = answers(1.1, 0.4, 0.0)
    found = measured(Rag4re=[good] * 2, Etrag=[middle] * 2, NoRetrieval=[bad] * 2)
    section = pairs.section(found, "f1", draws, 0)
    assert any(pair.measurable for pair in pairs.compared(found["f1"], draws, 0)) is enough
    told = [said for said in section.summary if "cannot call any difference" in said]
    assert len(told) == (0 if enough else 1)
    if told:
        assert section.summary[0] == told[0]
        assert told[0] in section.paragraphs
        assert told[0].endswith("is 0.051. Give --resamples of 60 or more.")


def test_a_difference_that_a_seed_turns_is_not_called_one_of_the_methods(measured):
    high, low, middle = answers(0.95, 0.6, 0.65)
    found = measured(Rag4re=[high, low, high], Etrag=[middle] * 3)
    pair = pairs.compared(found["f1"], 999, 0)[0]
    assert pair.measurable
    assert not pair.holds_over_seeds
    assert pair.verdict == "rag4re is higher with these seeds; other seeds may differ"
    section = pairs.section(found, "f1", 999, 0)
    assert "With 3 seeds" in " ".join(section.paragraphs)


def test_one_seed_says_what_cannot_be_tested(measured):
    high, low = answers(0.95, 0.4)
    section = pairs.section(measured(NoRetrieval=[low], Rag4re=[high]), "f1", 999, 0)
    table = section.tables[0]
    assert "p over seeds" not in table.columns
    assert table.rows[0][2] == "rag4re is higher, with this seed"
    assert "cannot be tested" in " ".join(section.paragraphs)


def test_the_summary_counts(measured):
    high, low = answers(0.95, 0.4)
    found = measured(Rag4re=[high] * 3, NoRetrieval=[low] * 3, Etrag=[low] * 3)
    summary = pairs.section(found, "f1", 999, 0).summary[0]
    assert summary == (
        "Of 3 pairs, 2 differ measurably on these queries, and over other seeds too."
    )
    alone = measured(Dro=[low] * 2)["f1"]
    assert pairs.section({"f1": alone}, "f1", 999, 0) is None


def test_mcnemar_is_made_where_answers_are_right_or_wrong(measured):
    high, low = answers(0.9, 0.5)
    found = measured(Rag4re=[high, low], NoRetrieval=[low, low])
    table = pairs.section(found, "f1", 99, 0).tables[1]
    assert table.title == "Exact test of McNemar of accuracy, seed by seed"
    only = sum(high) - sum(low)  # who has the easy queries right has them in both
    expected = stats.binomtest(only, only).pvalue
    assert table.rows == (
        ("rag4re", "noretrieval", 0, only, 0, pytest.approx(expected)),
        ("rag4re", "noretrieval", 1, 0, 0, 1.0),
    )
    del found["accuracy"], found["recall@1"]
    assert len(pairs.section(found, "f1", 99, 0).tables) == 1


def test_shares_are_not_right_or_wrong(measured):
    high, low = answers(0.9, 0.5)
    found = measured(Rag4re=[high], NoRetrieval=[low])
    values = found["accuracy"].sums.values.copy()
    values[0, 0, 0] = 0.5
    found["accuracy"] = replace(
        found["accuracy"], sums=replace(found["accuracy"].sums, values=values)
    )
    tables = pairs.section({name: found[name] for name in ("f1", "accuracy")}, "f1", 99, 0).tables
    assert [table.name for table in tables] == ["pairs"]


def test_the_picture_has_all_differences_and_marks(measured):
    high, low = answers(0.95, 0.3)
    found = measured(Rag4re=[high] * 3, NoRetrieval=[low] * 3)
    plot = pairs.section(found, "f1", 999, 0).plots[0]
    drawn = svg(plot.figure)
    difference = np.mean(high) - np.mean(low)
    assert f"+{difference:.3f}" in drawn
    assert f"−{difference:.3f}" in drawn
    assert "**" in drawn
    assert "1 pair" not in plot.alt

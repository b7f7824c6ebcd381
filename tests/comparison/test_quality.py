"""Sections of quality and of classes: what their tables say, with one seed and with several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lightning_rag.comparison import per_class, quality
from lightning_rag.comparison.measured import measurable, measure
from lightning_rag.comparison.runs import System, read, systems
from lightning_rag.comparison.style import svg

DRAWS = {"resamples": 200, "confidence": 0.9, "seed": 0}


@pytest.fixture
def compared(write_run):
    """Write systems of some seeds with answers drawn at a rate each."""

    def build(seeds, **rates):
        random = np.random.default_rng(1)
        folders = [
            write_run(method, seed=seed, right=(random.random(40) < rate).astype(int).tolist())
            for method, rate in rates.items()
            for seed in range(seeds)
        ]
        return systems([read(folder) for folder in folders])

    return build


def section(compared):
    return quality.section(compared, measure(compared, measurable(compared), **DRAWS), "f1")


def test_quality_has_every_metric_of_every_system(compared):
    found = section(compared(3, Rag4re=0.8, NoRetrieval=0.5))
    main, others = found.tables
    ends = ("low", "high", "low, seeds too", "high, seeds too")
    seeds = ("seed 0", "seed 1", "seed 2")
    assert main.columns == ("system", "mean", *ends, "SD over seeds", *seeds)
    assert [row[0] for row in main.rows] == ["rag4re", "noretrieval"]
    for row in main.rows:
        assert row[1] == pytest.approx(np.mean(row[7:]))
        assert row[6] == pytest.approx(np.std(row[7:], ddof=1))
        assert row[2] < row[1] < row[3]
        assert row[4] < row[1] < row[5]
        assert row[5] - row[4] >= 0.95 * (row[3] - row[2])
    assert main.bold == {(0, 1)}
    assert "90 % confidence" in main.note
    assert {row[0] for row in others.rows} == {"accuracy", "recall@1", "mrr"}
    mrr = next(row for row in others.rows if row[0] == "mrr")
    assert mrr[2] == 1.0
    assert mrr[3:7] == (None,) * 4  # no row says what it adds to it
    assert found.summary[0].startswith("Highest f1: rag4re, 0.783 (90 %")
    assert "over queries and seeds" in found.summary[0]


def test_one_seed_says_what_cannot_be_said(compared):
    found = section(compared(1, Rag4re=0.8, NoRetrieval=0.5))
    main = found.tables[0]
    assert main.columns[-1] == "SD over seeds"
    assert all(row[4:] == (None, None, None) for row in main.rows)
    assert all(row[2] < row[3] for row in main.rows)
    assert "There is one seed" in found.paragraphs[0]
    assert "There are 40 queries only" in found.paragraphs[1]
    assert "over queries:" in found.summary[0]


def test_where_less_is_better_the_lowest_is_the_best(compared, monkeypatch):
    monkeypatch.setattr(quality, "SMALLER_IS_BETTER", frozenset({"f1"}))
    found = section(compared(3, Rag4re=0.8, NoRetrieval=0.5))
    assert found.tables[0].bold == {(1, 1)}
    assert found.summary[0].startswith("Lowest f1: noretrieval, ")


def test_systems_that_are_never_wrong_have_no_interval(compared):
    found = section(compared(2, Rag4re=1.1, NoRetrieval=1.1))
    assert all(row[1:7] == (1.0, None, None, None, None, 0.0) for row in found.tables[0].rows)
    assert found.summary[0] == "Highest f1: rag4re and noretrieval, 1.000."
    assert svg(found.plots[0].figure).startswith("<svg")


def test_figures_of_single_tasks_are_no_metrics_of_their_own(compared):
    built = compared(2, Rag4re=0.8)
    runs = [replace(run, test={**run.test, "f1/books": 0.5}) for run in built[0].runs]
    found = section([System("rag4re", tuple(runs))])
    assert "f1/books" not in {row[0] for row in found.tables[1].rows}


def test_the_picture_names_all_systems(compared):
    found = section(compared(2, Rag4re=0.8, NoRetrieval=0.5))
    drawn = svg(found.plots[0].figure)
    assert ">rag4re<" in drawn
    assert ">noretrieval<" in drawn
    assert found.plots[0].table == "quality"


# --- by class


def naive_f1(rows, label):
    """F1 of a label from targets and predictions."""
    pairs = [(row["target"][0] == label, row["prediction"] == label) for row in rows]
    correct = sum(wanted and said for wanted, said in pairs)
    return 2 * correct / (sum(w for w, _ in pairs) + sum(s for _, s in pairs))


def test_f1_of_each_class_is_that_of_a_naive_loop(compared):
    built = compared(2, Rag4re=0.8, NoRetrieval=0.4)
    found = per_class.section(built, "f1")
    table = found.tables[0]
    assert sorted(row[0] for row in table.rows) == ["rel_read", "rel_sold", "rel_wrote"]
    for row in table.rows:
        for column, system in enumerate(built, 2):
            known = np.mean([naive_f1(run.rows, row[0]) for run in system.runs])
            assert row[column] == pytest.approx(known)
    gold = [row[1] for row in table.rows]
    assert gold == sorted(gold, reverse=True)
    assert sum(gold) == 40
    assert ">rel_wrote<" in svg(found.plots[0].figure)


def test_another_f1_is_taken_for_a_metric_without_classes(compared):
    found = per_class.section(compared(1, Rag4re=0.8, NoRetrieval=0.4), "accuracy")
    assert found.tables[0].title.startswith("f1 by class")


def test_questions_have_no_classes(compared):
    built = compared(1, Rag4re=0.8)
    run = built[0].runs[0]
    metrics = {"version": 1, "monitor": "f1", "aggregations": {"f1": {"kind": "mean"}}}
    rows = [{**row, "counts": {"f1": 0.5}} for row in run.rows]
    question = replace(run, rows=rows, summary={**run.summary, "metrics": metrics})
    assert per_class.section([System("rag4re", (question,))], "f1") is None


def test_labels_within_data_sets_have_a_table(compared):
    built = compared(1, Rag4re=0.8)
    run = built[0].runs[0]
    macro = {"kind": "f1", "average": "macro", "over": "occurring"}
    how = {"f1": macro, "f1/news": {"kind": "f1"}, "f1/films": {"kind": "f1"}}
    rows = []
    for place, row in enumerate(run.rows):
        task = ("news", "films")[place % 2]
        label = {"news": "person", "films": "actor"}[task]
        added = {"f1": {task: [1, 2, 1]}, f"f1/{task}": {label: [1, 1, 1], "": [0, 1, 0]}}
        rows.append({**row, "counts": added})
    figure = 2 / 3
    test = {"f1": figure, "f1/news": figure, "f1/films": figure}
    changed = replace(
        run, rows=rows, test=test, summary={**run.summary, "metrics": {"aggregations": how}}
    )
    found = per_class.section([System("a", (changed,))], "f1")
    sets, labels = found.tables
    assert sets.rows == (("films", 20, pytest.approx(figure)), ("news", 20, pytest.approx(figure)))
    assert {row[:2] for row in labels.rows} == {("news / person", 20), ("films / actor", 20)}
    assert all(row[2] == 1.0 for row in labels.rows)  # without what is of no label

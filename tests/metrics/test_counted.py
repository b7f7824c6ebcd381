"""What every metric says of single queries: nothing else goes into its figures."""

from __future__ import annotations

import random
import runpy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rag.metrics.base import CountedMetric
from lightning_rag.metrics.counts import aggregate
from lightning_rag.metrics.spans import ExtractionF1
from lightning_rag.types import Predictions, RagBatch

# Random batches and every metric class, which a test in two processes shares with this one.
SHARED: Mapping[str, Any] = runpy.run_path(str(Path(__file__).with_name("two_processes.py")))
NAMES = [*SHARED["make_metrics"]().keys(keep_base=True), "extraction", "extraction by type"]


def make(name: str) -> CountedMetric:
    if name.startswith("extraction"):
        return ExtractionF1(SHARED["record"], per_type=name.endswith("type"))
    metric = dict(SHARED["make_metrics"]().items(keep_base=True))[name]
    assert isinstance(metric, CountedMetric)
    return metric


def queries(name: str) -> list[tuple[Predictions, RagBatch]]:
    """Eleven batches of four random queries each, as 44 batches of one."""
    found = []
    for number in range(SHARED["BATCHES"]):
        predictions, batch = SHARED["make_batch"](number)
        if name.startswith("extraction"):
            predictions, batch = SHARED["as_extraction"](number, predictions, batch)
        for row in range(4):
            one = slice(row, row + 1)
            alone = replace(
                batch,
                rows=batch.rows[one],
                instances=batch.instances[one],
                candidate_ids=batch.candidate_ids[one],
                candidate_scores=batch.candidate_scores[one],
                relevance=batch.relevance[one],
                relevant_rows=batch.relevant_rows[one],
                answer_rows=batch.answer_rows[one],
                excluded_rows=batch.excluded_rows[one],
            )
            found.append((Predictions(predictions.texts[one], predictions.ranking[one]), alone))
    return found


def computed(metric: CountedMetric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_query_adds_the_same_alone_and_in_a_batch(name: str) -> None:
    alone, together = make(name), make(name)
    for query in queries(name):
        alone.update(*query)
    for number in range(SHARED["BATCHES"]):
        made = SHARED["make_batch"](number)
        extraction = name.startswith("extraction")
        together.update(*(SHARED["as_extraction"](number, *made) if extraction else made))
    assert alone.rows() == together.rows()
    assert {len(rows) for rows in alone.rows().values()} == {44}
    assert computed(alone) == computed(together)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_rows_give_the_figures_of_any_resample(name: str, seed: int) -> None:
    """As if the metric had seen the queries of the resample, some of them twice, some never."""
    every = queries(name)
    metric = make(name)
    for query in every:
        metric.update(*query)
    picks = random.Random(seed).choices(range(len(every)), k=len(every))
    resampled = make(name)
    for pick in picks:
        resampled.update(*every[pick])
    expected = computed(resampled)
    checked = 0
    for figure, rows in metric.rows().items():
        found = aggregate(metric.aggregation(figure), [rows[pick] for pick in picks])
        assert found == pytest.approx(expected.get(figure, 0), abs=1e-6), figure
        checked += 0 < found < 1
    assert checked


@pytest.mark.parametrize("name", NAMES)
def test_without_queries_the_figures_are_0(name: str) -> None:
    """But for TACRED's precision, which is 1 when nothing is predicted."""
    metric = make(name)
    assert all(rows == [] for rows in metric.rows().values())
    empty = torch.zeros(0, 8)
    batch = RagBatch(torch.arange(0), [], empty.long(), empty, empty, [], [], [])
    metric.update(Predictions([], empty), batch)
    figures = computed(metric)
    assert figures.pop("precision", 1) in (0, 1)
    assert figures
    assert set(figures.values()) == {0}


def test_tacreds_f1_is_that_of_its_relations() -> None:
    metric = make("tacred")
    for query in queries("tacred"):
        metric.update(*query)
    rows = metric.rows()["f1"]
    assert "Other" not in {name for row in rows if isinstance(row, Mapping) for name in row}
    gold = sum(counts[2] for row in rows if isinstance(row, Mapping) for counts in row.values())
    labels = [batch.instances[0].answers[0] for _, batch in queries("tacred")]
    assert gold == len(labels) - labels.count("Other")

"""Ranking measures against trec_eval."""

from __future__ import annotations

import math

import pytest
import pytrec_eval
import torch
from torchmetrics import MetricCollection

from lightning_rag.metrics.retrieval import (
    NDCG,
    AnswerRecall,
    Precision,
    Recall,
    ReciprocalRank,
    Success,
    among,
    ndcg_at_k,
    precision_at_k,
    ranked_hits,
    recall_at_k,
    reciprocal_rank,
    success_at_k,
)
from lightning_rag.types import Instance, Predictions, RagBatch

KS = (1, 3, 5, 10)


def tensors_of(case):
    """Turn qrels and run into the tensors of a batch of the queries that trec_eval scores."""
    level = case["inputs"]["relevance_level"]
    qrels, run = case["inputs"]["qrels"], case["inputs"]["run"]
    queries = list(case["outputs"]["per_query"])
    width = max(len(run[query]) for query in queries) + 2
    # trec_eval breaks ties by descending string order: rows numbered in that order do the same
    rows = {name: row for row, name in enumerate(sorted({d for q in queries for d in run[q]}))}
    ids = torch.full((len(queries), width), -1)
    scores = torch.full((len(queries), width), -torch.inf, dtype=torch.float64)
    relevance = torch.zeros(len(queries), width)
    for i, query in enumerate(queries):
        for j, (name, score) in enumerate(run[query].items()):
            ids[i, j], scores[i, j] = rows[name], score
            relevance[i, j] = float(qrels[query].get(name, 0) >= level)
    counts = [sum(grade >= level for grade in qrels[query].values()) for query in queries]
    return queries, scores, relevance, torch.tensor(counts), ids


def measures(scores, relevance, count, ids):
    """Return all measures of each query under trec_eval's names."""
    found = {"recip_rank": reciprocal_rank(scores, relevance, candidate_ids=ids)}
    for k in KS:
        found[f"recall_{k}"] = recall_at_k(scores, relevance, count, k, candidate_ids=ids)
        found[f"P_{k}"] = precision_at_k(scores, relevance, k, candidate_ids=ids)
        found[f"success_{k}"] = success_at_k(scores, relevance, k, candidate_ids=ids)
        found[f"ndcg_cut_{k}"] = ndcg_at_k(scores, relevance, count, k, candidate_ids=ids)
    return found


def classes():
    found = {"recip_rank": ReciprocalRank()}
    for k in KS:
        found |= {f"recall_{k}": Recall(k), f"P_{k}": Precision(k)}
        found |= {f"success_{k}": Success(k), f"ndcg_cut_{k}": NDCG(k)}
    return found


def batch_of(scores, relevance, count, ids):
    batch = RagBatch(
        rows=torch.arange(len(ids)),
        instances=[Instance(id=str(row), text="") for row in range(len(ids))],
        candidate_ids=ids,
        candidate_scores=scores,
        relevance=relevance,
        relevant_rows=[torch.arange(int(number)) for number in count],
        answer_rows=[torch.tensor([])] * len(ids),
        excluded_rows=[torch.tensor([])] * len(ids),
    )
    return Predictions([""] * len(ids), scores), batch


def is_binary(case):
    return all(g in (0, 1) for qrel in case["inputs"]["qrels"].values() for g in qrel.values())


def test_golden(golden):
    """Everything that trec_eval prints; nDCG where the relevance is binary, as ours is."""
    seen = set()
    for case in golden("retrieval_metrics")["cases"]:
        queries, *tensors = tensors_of(case)
        for name, values in measures(*tensors).items():
            if name.startswith("ndcg") and not is_binary(case):
                continue
            for query, value in zip(queries, values.tolist(), strict=True):
                expected = case["outputs"]["per_query"][query].get(name)
                if expected is not None:
                    assert value == pytest.approx(expected, abs=1e-6), (case["id"], query, name)
                    seen.add(name)
    assert {f"{m}_{k}" for m in ("recall", "ndcg_cut", "P") for k in KS} <= seen
    assert {"recip_rank", "success_1", "success_5", "success_10"} <= seen


def test_golden_mean_by_classes_over_split_updates(golden):
    """Includes a query without relevant passages: it counts as 0."""
    for case in golden("retrieval_metrics")["cases"]:
        queries, *tensors = tensors_of(case)
        found = classes()
        for start in range(0, len(queries), 2):
            update = batch_of(*(tensor[start : start + 2] for tensor in tensors))
            for metric in found.values():
                metric.update(*update)
        for name, metric in found.items():
            [value] = metric.compute().values()
            if name in case["outputs"]["mean"] and (is_binary(case) or "ndcg" not in name):
                expected = case["outputs"]["mean"][name]
                assert float(value) == pytest.approx(expected, abs=1e-6), (case["id"], name)


@pytest.mark.parametrize("levels", [3, 1000, 10**9])
def test_random_rankings_equal_pytrec_eval(levels):
    """From many ties to none, some candidates padding and some relevant passages not retrieved."""
    generator = torch.Generator().manual_seed(levels)
    queries, width, store = 60, 15, 40
    ids = torch.rand(queries, store, generator=generator).argsort(dim=1)[:, :width]
    scores = torch.randint(levels, (queries, width), generator=generator) / levels
    padding = torch.rand(queries, width, generator=generator) < 0.1
    scores[padding], ids[padding] = -torch.inf, -1
    gold = torch.rand(queries, store, generator=generator) < 0.15
    relevance = gold.gather(1, ids.clamp(min=0)) & ~padding
    names = [f"d{row:03d}" for row in range(store)]
    qrels = {
        f"q{i}": {name: int(flag) for name, flag in zip(names, gold[i].tolist(), strict=True)}
        for i in range(queries)
    }
    run = {
        f"q{i}": {names[int(d)]: float(s) for d, s in zip(ids[i], scores[i], strict=True) if d >= 0}
        for i in range(queries)
    }
    cuts = ",".join(map(str, KS))
    wanted = {f"{measure}.{cuts}" for measure in ("ndcg_cut", "recall", "P", "success")}
    expected = pytrec_eval.RelevanceEvaluator(qrels, wanted | {"recip_rank"}).evaluate(run)
    assert len(expected) == queries
    ours = measures(scores, relevance.float(), gold.sum(dim=1), ids)
    for name, values in ours.items():
        theirs = [expected[f"q{i}"][name] for i in range(queries)]
        assert values.tolist() == pytest.approx(theirs, abs=1e-6), name


def test_ndcg_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.7]])
    relevance = torch.tensor([[0.0, 1.0, 1.0]])
    gain = 1 / math.log2(3) + 1 / math.log2(4)
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4)
    found = ndcg_at_k(scores, relevance, torch.tensor([5]), 3)  # three of five fit in
    assert found.tolist() == pytest.approx([gain / ideal])


def test_what_was_not_retrieved_never_counts():
    scores = torch.tensor([[-torch.inf, 0.1, 5.0]])
    relevance, count = torch.ones(1, 3), torch.tensor([3])
    ids = torch.tensor([[4, 2, -1]])  # -inf, retrieved, padding with a stray score
    assert ranked_hits(scores, relevance, ids).tolist() == [[True, False, False]]
    assert recall_at_k(scores, relevance, count, 3, candidate_ids=ids).tolist() == pytest.approx(
        [1 / 3]
    )
    nothing = torch.full((1, 3), -torch.inf)
    for values in measures(nothing, relevance, count, ids).values():
        assert values.tolist() == [0.0]


def test_no_candidates_at_all():
    empty, count = torch.zeros(2, 0), torch.tensor([1, 0])
    for values in measures(empty, empty, count, empty.long()).values():
        assert values.tolist() == [0.0, 0.0]


def test_ties_by_descending_id_and_by_column_without_ids():
    scores, relevance = torch.tensor([[0.5, 0.5, -0.0, 0.0]]), torch.tensor([[1.0, 0, 0, 1]])
    assert ranked_hits(scores, relevance).tolist() == [[False, True, True, False]]
    ids = torch.tensor([[9, 3, 8, 7]])
    assert ranked_hits(scores, relevance, ids).tolist() == [[True, False, False, True]]


def test_order_of_candidates_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (8, 12), generator=generator).float()
    relevance = torch.randint(2, (8, 12), generator=generator).float()
    ids = torch.arange(12).expand(8, 12)
    order = torch.rand(8, 12, generator=generator).argsort(dim=1)
    count = relevance.sum(dim=1).long()
    before = measures(scores, relevance, count, ids)
    after = measures(*(t.gather(1, order) for t in (scores, relevance)), count, order)
    for name in before:
        assert torch.equal(before[name], after[name]), name


def test_collection_keeps_metrics_apart_that_start_equal():
    """A collection would merge metrics with equal states after the first batch for good."""
    metrics = MetricCollection({metric.name: metric for metric in classes().values()})
    ids, relevance = torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1.0, 0, 0, 0]])
    count = torch.tensor([1])
    for scores in ([[9.0, 1, 1, 1]], [[0.0, 1, 2, 3]]):  # found at rank 1, then at rank 4
        metrics.update(*batch_of(torch.tensor(scores), relevance, count, ids))
    found = {name: float(value) for name, value in metrics.compute().items()}
    names = {f"{m}@{k}" for m in ("recall", "precision", "success", "ndcg") for k in KS} | {"mrr"}
    assert set(found) == names
    assert (found["recall@1"], found["recall@3"], found["recall@5"]) == (0.5, 0.5, 1.0)
    assert found["mrr"] == pytest.approx((1 + 1 / 4) / 2)


def test_among_equals_isin():
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.tensor([-1, -1, 0, 29]), torch.randint(30, (40,), generator=generator)])
    for count in (0, 1, 5, 30):
        rows = torch.randperm(30, generator=generator)[:count].sort().values
        assert torch.equal(among(ids, rows), torch.isin(ids, rows))
    assert not among(ids, torch.tensor([])).any()  # nothing is nothing, whatever its type


def test_answer_recall_by_hand():
    """By the answers' rows and not by relevance; only what was retrieved counts."""
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, -torch.inf], [3.0, 2, 1]])
    ids = torch.tensor([[7, 2, 5], [4, 9, 0], [1, 6, 3], [8, -1, -1]])
    predictions, batch = batch_of(scores, torch.ones(4, 3), torch.tensor([3] * 4), ids)
    rows = ([0, 2, 9], [1, 4, 9], [3], [])  # found at rank 2, at rank 1, not retrieved, nowhere
    batch.answer_rows = [torch.tensor(found) for found in rows]
    for k, expected in ((1, 0.25), (2, 0.5), (3, 0.5), (9, 0.5)):
        metric = AnswerRecall(k)
        metric.update(predictions, batch)
        assert metric.compute() == {f"answer_recall@{k}": expected}
        assert metric.values(predictions, batch).shape == (4,)


def test_bad_input():
    scores, relevance, count = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([3, 3])
    with pytest.raises(ValueError, match=r"one shape \(B, N\), got \(2, 3\) and \(2, 2\)"):
        reciprocal_rank(scores, relevance[:, :2])
    with pytest.raises(ValueError, match=r"candidate_ids: expected .* \(2, 3\), got \(1, 3\)"):
        reciprocal_rank(scores, relevance, candidate_ids=torch.zeros(1, 3).long())
    with pytest.raises(ValueError, match="got NaN"):
        success_at_k(scores * torch.nan, relevance, 1)
    with pytest.raises(ValueError, match=r"relevant_count: expected the shape \(2,\)"):
        recall_at_k(scores, relevance, torch.tensor([3]), 1)
    with pytest.raises(ValueError, match=r"query 1 of the batch has 3 relevant .* got 2"):
        ndcg_at_k(scores, relevance, torch.tensor([3, 2]), 1)
    for metric in (Recall, Precision, Success, AnswerRecall, NDCG):
        with pytest.raises(ValueError, match="k: expected a positive number of ranks, got 0"):
            metric(0)
    with pytest.raises(ValueError, match="got -1"):
        recall_at_k(scores, relevance, count, -1)

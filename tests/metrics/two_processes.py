"""Run by test_two_processes.py, once in each process: scores its share, writes what it computed.

Usage: two_processes.py RANK WORLD RENDEZVOUS OUT
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torchmetrics import MetricCollection

from lightning_rag.metrics.relation import (
    SEMEVAL2010_LABELS,
    PublishedF1,
    RelationAccuracy,
    Repaired,
    RepairedRate,
    SemEval2010F1,
    TacredF1,
)
from lightning_rag.metrics.retrieval import NDCG, AnswerRecall, Recall, ReciprocalRank, Success
from lightning_rag.metrics.spans import ExtractionF1
from lightning_rag.metrics.text import ExactMatch, MacroF1, TokenF1
from lightning_rag.types import Extraction, Fact, Instance, Mention, Predictions, RagBatch

# 11 batches of 4 queries: an odd number, so that the processes see different numbers of batches.
BATCHES = 11


def make_batch(number: int) -> tuple[Predictions, RagBatch]:
    """Return a random batch of its own seed."""
    generator = torch.Generator().manual_seed(number)

    def labels() -> list[str]:
        draws = torch.randint(len(SEMEVAL2010_LABELS), (4,), generator=generator)
        return [SEMEVAL2010_LABELS[i] for i in draws.tolist()]

    gold = labels()
    right = (torch.rand(4, generator=generator) < 0.6).tolist()
    texts = [g if ok else p for g, p, ok in zip(gold, labels(), right, strict=True)]
    texts[0] = "no label" if number % 3 == 0 else texts[0]
    texts[1] = Repaired(texts[1]) if number % 2 == 0 else texts[1]
    relevance = (torch.rand(4, 8, generator=generator) < 0.3).float()
    ranking = torch.rand(4, 8, generator=generator)
    batch = RagBatch(
        rows=torch.arange(4),
        instances=[Instance(id=str(i), text="", answers=(g,)) for i, g in enumerate(gold)],
        candidate_ids=torch.arange(8).expand(4, 8),
        candidate_scores=ranking,
        relevance=relevance,
        relevant_rows=[torch.arange(int(number) + 1) for number in relevance.sum(dim=1)],
        answer_rows=[torch.arange(0, 8, 2 + i) for i in range(4)],
        excluded_rows=[torch.tensor([])] * 4,
    )
    return Predictions(texts, ranking), batch


def make_metrics() -> MetricCollection:
    """Return every class; those that share a result name get the class's name in front."""
    return MetricCollection(
        {
            "tacred": TacredF1("Other", SEMEVAL2010_LABELS),
            "semeval": SemEval2010F1(),
            "accuracy": RelationAccuracy(SEMEVAL2010_LABELS),
            "published": PublishedF1("micro19", SEMEVAL2010_LABELS),
            "repaired": RepairedRate(),
            "em": ExactMatch(),
            "token": TokenF1(),
            "recall@1": Recall(1),
            "recall@5": Recall(5),
            "success@1": Success(1),
            "answer_recall@1": AnswerRecall(1),
            "macro": MacroF1(SEMEVAL2010_LABELS),
            "mrr": ReciprocalRank(),
            "ndcg@5": NDCG(5),
        }
    )


def as_extraction(
    number: int, predictions: Predictions, batch: RagBatch
) -> tuple[Predictions, RagBatch]:
    """Return the batch as one of a task that only one process, or both, may have."""

    def asked(label: str) -> Extraction:
        return Extraction("events", SEMEVAL2010_LABELS, (Fact(label, (Mention("it"),)),))

    texts = [f"{text}: it" for text in predictions.texts]
    name = f"EET_{min(number, 3)}"
    instances = [
        replace(i, answers=(f"{i.answers[0]}: it",), task=name, extraction=asked(i.answers[0]))
        for i in batch.instances
    ]
    held_out = [replace(i, held_out=number == 1) for i in instances]
    return replace(predictions, texts=texts), replace(batch, instances=held_out)


def record(instance: Instance) -> str:
    """Return a record with labels that the official scorer can read."""
    return "Schema: [Other, Content-Container]"


def compute(rank: int, world: int) -> dict[str, float]:
    """Score every batch whose number leaves `rank` on division by `world`."""
    metrics, extraction = make_metrics(), ExtractionF1(record, per_type=True)
    for number in range(rank, BATCHES, world):
        made = make_batch(number)
        metrics.update(*made)
        extraction.update(*as_extraction(number, *made))
    figures = {f"extraction {name}": value for name, value in extraction.compute().items()}
    return {name: float(value) for name, value in {**metrics.compute(), **figures}.items()}


if __name__ == "__main__":
    rank, world, rendezvous, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.distributed.init_process_group(
        "gloo",
        init_method=Path(rendezvous).as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    Path(out).write_text(json.dumps(compute(rank, world)), encoding="utf-8")
    torch.distributed.barrier()  # no process leaves while another still waits for it
    torch.distributed.destroy_process_group()

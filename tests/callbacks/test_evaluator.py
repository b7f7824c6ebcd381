"""The metrics of a method that ranks other passages than the first stage's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.data.candidates import Random
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticQuestions
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase
from lightning_rag.tasks.question_answering import QuestionAnswering
from lightning_rag.types import RagBatch, Retrieved


class WholeStore(Method):
    """Ranks every passage, in an order that is drawn for each query, and answers nothing."""

    reads_candidates = False

    def __init__(self) -> None:
        super().__init__(GeneratorConfig(), decoding="free")

    def build(self) -> None:
        self.part = nn.Linear(1, 1)
        self.ranked: list[tuple[RagBatch, Retrieved]] = []

    def groups(self) -> dict[str, nn.Module]:
        return {"part": self.part}

    def phases(self) -> list[Phase]:
        return []

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        shape = (len(batch.instances), len(self.data.store))
        ids = torch.rand(shape).argsort(dim=1)  # (B, M)
        scores = torch.rand(shape)
        retrieved = Retrieved(ids, scores, ids[:, :0])
        self.ranked.append((batch, retrieved))
        return retrieved

    def answer(self, batch: RagBatch, retrieved: Retrieved) -> list[str]:
        return ["?"] * len(batch.instances)


def test_recall_of_the_whole_store(tmp_path: Path) -> None:
    """Equal to a naive look at the passages: by their ids, and by whether they hold an answer."""
    data = RagDataModule(
        SyntheticQuestions(train=16, validation=8, test=40),
        QuestionAnswering(),
        Random(),
        num_candidates=6,
        retrieval_ks=(1, 3, 5),
        eval_batch_size=16,
        cache_dir=str(tmp_path / "cache"),
    )
    method = WholeStore()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[Evaluator()],
    )
    (found,) = trainer.test(method, datamodule=data, verbose=False)
    queries = 0
    hits = {(kind, k): 0 for kind in ("answer_recall", "success") for k in (1, 3, 5)}
    for batch, retrieved in method.ranked:
        for row, instance in enumerate(batch.instances):
            queries += 1
            order = retrieved.scores[row].argsort(descending=True)
            best = [data.store[i] for i in retrieved.candidate_ids[row][order].tolist()]
            for k in (1, 3, 5):
                hits["answer_recall", k] += any(data.task.matches(instance, p) for p in best[:k])
                hits["success", k] += any(p.id in instance.relevant for p in best[:k])
    assert queries == 40
    assert hits["answer_recall", 5] > hits["success", 5] > 0
    for (kind, k), count in hits.items():
        assert found[f"test/{kind}@{k}"] == pytest.approx(count / queries)

"""A method whose validation scores are given, on a small data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.data.candidates import BM25
from lightning_rag.data.datamodule import RagDataModule
from lightning_rag.data.readers.synthetic import SyntheticRelations
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import first_stage_choice
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.tasks.relation_extraction import RelationExtraction
from lightning_rag.types import LossTerms, RagBatch, Retrieved

State = dict[str, Tensor]


class Counting(nn.Module):
    """A layer with an embedding, and with the counters that backbones have."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.linear = nn.Linear(3, 1)
        self.tokens = 0
        self.truncated = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.tokens += 10 * len(rows)
        value: Tensor = self.linear(self.embedding(rows % 7)).square().mean()
        return value


class Scripted(Method):
    """Two small models, any phases, and validation scores from a list, or by global step."""

    def __init__(self, scores: Sequence[float] | Mapping[int, float] = ()) -> None:
        rates = OptimizerConfig(learning_rates={"first": 0.1, "second": 0.1}, warmup=0.0)
        super().__init__(GeneratorConfig(), rates, k=1, decoding="free")
        self.scores = scores
        self.listed: list[Phase] = []
        self.steps: list[tuple[str, State]] = []  # phase and weights before each step
        self.validations: list[State] = []
        self.estimated: list[int] = []

    def build(self) -> None:
        self.first, self.second = Counting(), Counting()

    def groups(self) -> dict[str, nn.Module]:
        return {"first": self.first, "second": self.second}

    def phases(self) -> list[Phase]:
        return self.listed

    def weights(self) -> State:
        return {name: weight.detach().clone() for name, weight in self.named_parameters()}

    def loss(self, batch: RagBatch) -> LossTerms:
        self.steps.append((self.phase.name, self.weights()))
        first, second = self.first(batch.rows), self.second(batch.rows)
        return LossTerms(total=first + second, terms={"first": first.detach()})

    def estimate(self, batch: RagBatch) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        assert not self.training
        self.estimated += batch.rows.tolist()
        self.first(batch.rows)
        return {"doubled": 2 * batch.rows}

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        return first_stage_choice(batch, k)

    def answer(self, batch: RagBatch, retrieved: Retrieved) -> list[str]:
        """Every second answer is right."""
        self.second(batch.rows)
        wrong = "<b>no label</b>"
        pairs = zip(batch.instances, batch.rows.tolist(), strict=True)
        return [wrong if row % 2 else instance.answers[0] for instance, row in pairs]

    def on_validation_epoch_end(self) -> None:
        if self.scores:
            by_step = isinstance(self.scores, Mapping)
            index = self.trainer.global_step if by_step else len(self.validations)
            self.log("val/score", self.scores[index])
        self.validations.append(self.weights())


@pytest.fixture
def data(tmp_path: Path) -> RagDataModule:
    """Forty training queries in five batches."""
    return RagDataModule(
        reader=SyntheticRelations(train=40, validation=8, test=8),
        task=RelationExtraction(scorer="accuracy", negative_label=None),
        first_stage=BM25(),
        num_candidates=4,
        batch_size=8,
        eval_batch_size=8,
        cache_dir=str(tmp_path / "cache"),
    )


Fit = Callable[..., tuple[Scripted, Trainer]]


@pytest.fixture
def fit(tmp_path: Path, data: RagDataModule) -> Fit:
    """Train phases, given as functions of the method; return method and trainer."""

    def start(
        *phases: Callable[[Scripted], Phase],
        scores: Sequence[float] | Mapping[int, float] = (),
        callbacks: Sequence[Callback] = (),
        max_epochs: int = -1,
        max_steps: int = -1,
        validate_every: int | None = None,
        check_val_every_n_epoch: int = 1,
        fast_dev_run: int = 0,
        logger: Logger | bool = False,
        folder: str = "run",
        ckpt_path: Path | None = None,
    ) -> tuple[Scripted, Trainer]:
        method = Scripted(scores)
        method.listed = [phase(method) for phase in phases]
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=max_epochs,
            max_steps=max_steps,
            val_check_interval=validate_every,
            check_val_every_n_epoch=check_val_every_n_epoch,
            fast_dev_run=fast_dev_run,
            logger=logger,
            log_every_n_steps=1,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path / folder,
            callbacks=[PhaseSchedule(tmp_path / folder / "checkpoints"), Evaluator(), *callbacks],
        )
        trainer.fit(method, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return method, trainer

    return start

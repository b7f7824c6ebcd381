"""A method with everything that a phase can have: the contract test runs over it too."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig, GeneratorConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import first_stage_choice
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.types import LossTerms, RagBatch, Retrieved


class TwoPhases(Method):
    """Trains an encoder on estimated scores against a stale index, then the generator in a series.

    Each phase of the series weighs the queries with the generator as it is, and then trains it from
    its first weights. A made-up score is best at step 9 and ends the series before its last phase.
    """

    refresh_every = 2

    def __init__(
        self,
        generator: GeneratorConfig,
        encoder: EncoderConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 1,
        steps: int = 5,
    ) -> None:
        super().__init__(generator, optimizer, k=k)
        self.encoder_config = encoder
        self.steps = steps

    def build(self) -> None:
        super().build()
        self.retriever = build_encoder(self.encoder_config, self.data.corpus())
        empty = torch.zeros(len(self.data.store), self.retriever.dimension)
        self.register_buffer("index", empty, persistent=False)

    def refresh_index(self) -> None:
        keys = [self.data.task.key(passage) for passage in self.data.store]
        self.index.copy_(self.retriever.encode(keys, batch_size=32))

    def groups(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "retriever": self.retriever}

    def phases(self) -> list[Phase]:
        distil = Phase(
            "distil",
            trains=("retriever",),
            loss=self.distil,
            estimate=self.teach,
            summarize=self.summarize,
            steps=self.steps,
        )
        fits = [
            Phase(
                f"fit_{number}",
                trains=("generator",),
                loss=self.weighted_loss,
                estimate=self.weigh,
                summarize=self.summarize,
                steps=2,
                monitor="score",
                series="fit",
                series_patience=1,
                start_from="distil",
            )
            for number in range(1, 6)
        ]
        return [distil, *fits]

    def summarize(self, rows: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in rows.items()}

    def teach(self, batch: RagBatch) -> dict[str, Tensor]:
        """The teacher's score of each candidate, with noise that must be repeatable."""
        noise = torch.rand_like(batch.candidate_scores)  # (B, N)
        return {"teacher": batch.relevance + 0.1 * noise}

    def scores(self, batch: RagBatch) -> Tensor:
        queries = self.retriever([self.data.task.query(i) for i in batch.instances])  # (B, D)
        keys = self.index[batch.candidate_ids[:, :4]]  # (B, 4, D), stale between two refreshes
        return torch.einsum("bd,bnd->bn", queries, keys)  # (B, 4)

    def distil(self, batch: RagBatch) -> LossTerms:
        teacher = self.bank.get("teacher", batch.rows)[:, :4]  # (B, 4)
        loss = (self.scores(batch) - teacher).square().mean()
        return LossTerms(total=loss, terms={"teacher": teacher.mean()})

    def log_p(self, batch: RagBatch) -> Tensor:
        prompts = self.prompts(batch, self.retrieve(batch, self.k))
        targets = [self.data.task.target(instance) for instance in batch.instances]
        return self.generator.log_likelihood(prompts, targets, reduction="mean")  # (B,)

    def weigh(self, batch: RagBatch) -> dict[str, Tensor]:
        """How likely the answer is before the phase."""
        return {"weight": self.log_p(batch).exp()}

    def weighted_loss(self, batch: RagBatch) -> LossTerms:
        """A random factor stands for dropout and sampling: a resume must repeat it."""
        weights = self.bank.get("weight", batch.rows)  # (B,)
        return LossTerms(total=-(weights * self.log_p(batch)).mean() * (1 + 0.1 * torch.rand(())))

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", -abs(self.global_step - 9.0))

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        return first_stage_choice(batch, k)

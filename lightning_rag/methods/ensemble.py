"""REPLUG's ensemble (arXiv 2301.12652): one prompt a passage, their answers' mixture."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.errors import UserError
from lightning_rag.functional.processes import shared_mean
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import first_stage_choice
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.types import LossTerms, Prompt, RagBatch, Retrieved


class Ensemble(Method):
    """Fine-tunes the generator as a mixture over passages that it reads one at a time.

    With the first stage's best K passages d_1 … d_K of a query x, and their scores s,

        p(y|x) = sum_k lambda_k p(y|x, d_k),   lambda = softmax(s / t).

    The weights are REPLUG's (Shi et al. 2023, section 3.2). Its language model is frozen, and mixes
    the distributions of each next token; here whole answers are mixed and the generator learns by
    -log p(y|x), which is RAG-Sequence (Lewis et al. 2020, arXiv 2005.11401, section 2.1) with a
    retriever that stays. Answers that are written freely are found by its "thorough decoding": one
    is written after each passage, and each is scored after every passage.

    Args:
        generator: the model that writes the answer.
        optimizer: learning rates by parameter name, and their schedule.
        k: K, passages, each in a prompt of its own.
        temperature: t, on the scale of the first stage's scores: 1 in REPLUG, whose scores are
            cosines; the larger, the more equal the weights.
        epochs: passes over the training queries.
        patience: stop after so many validations without a better score; None = never.
        decoding: "options" scores the task's allowed answers, "free" generates text.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 4,
        temperature: float = 1.0,
        epochs: int = 10,
        patience: int | None = None,
        decoding: Literal["options", "free"] = "options",
    ) -> None:
        super().__init__(generator, optimizer, k=k, decoding=decoding)
        if k < 1 or not 0 < temperature < math.inf:
            legal = "legal: model.k 1 or more, model.temperature above 0"
            raise UserError(f"model.k is {k}, model.temperature {temperature}; {legal}")
        self.temperature = temperature
        self.epochs = epochs
        self.patience = patience

    def phases(self) -> list[Phase]:
        """One phase: the generator learns by the mixture's likelihood."""
        return [Phase("fit", ("generator",), self.loss, epochs=self.epochs, patience=self.patience)]

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Take the first-stage retriever's best `k`."""
        return first_stage_choice(batch, k)

    def loss(self, batch: RagBatch) -> LossTerms:
        """-log sum_k lambda_k p(y|x, d_k), the mean over the queries."""
        retrieved = self.retrieve_once(batch)
        targets = [self.data.task.target(instance) for instance in batch.instances]
        log_p = self.generator.log_likelihood(
            self.alone(batch, retrieved), [target for target in targets for _ in range(self.k)]
        )
        joint = self.log_weights(retrieved) + log_p.view(-1, self.k)  # (B, K)
        return LossTerms(total=-shared_mean(joint.logsumexp(dim=1), counts=not batch.idle))

    def answer(self, batch: RagBatch, retrieved: Retrieved) -> list[str]:
        """Return the answer to each query that is most likely under the mixture."""
        task, weights = self.data.task, self.log_weights(retrieved)
        prompts = self.alone(batch, retrieved)  # B * K
        options = [task.options(instance) for instance in batch.instances]
        free = self.decoding == "free" or None in options
        written = self.generator.generate(prompts) if free else []
        answers = []
        for row, (instance, allowed) in enumerate(zip(batch.instances, options, strict=True)):
            own = slice(row * self.k, (row + 1) * self.k)
            if free or allowed is None:
                texts = list(dict.fromkeys(written[own]))
                pairs = [(prompt, text) for prompt in prompts[own] for text in texts]
                log_p = self.generator.score(*zip(*pairs, strict=True)).view(self.k, -1)
                allowed = tuple(task.parse(text, instance) for text in texts)
            else:
                texts = [task.option_target(instance, option) for option in allowed]
                log_p = torch.stack(self.generator.choose(prompts[own], [texts] * self.k))
            joint = weights[row, :, None] + log_p  # (K, answers)
            answers.append(allowed[int(joint.logsumexp(dim=0).argmax())])
        return answers

    def log_weights(self, retrieved: Retrieved) -> Tensor:
        """Return log lambda (B, K); all weight is on the first place where nothing was found."""
        found = retrieved.positions >= 0  # (B, K)
        scores = retrieved.scores.gather(1, retrieved.positions.clamp(min=0))
        scores = scores.masked_fill(~found, -torch.inf)
        scores[:, 0].masked_fill_(~found.any(dim=1), 0.0)
        return (scores / self.temperature).log_softmax(dim=1)

    def alone(self, batch: RagBatch, retrieved: Retrieved) -> list[Prompt]:
        """Return B * K prompts of one passage each, or of none where a query has fewer than K."""
        prompts = self.prompts(batch, retrieved)
        return [replace(p, passages=p.passages[j : j + 1]) for p in prompts for j in range(self.k)]

"""The generator alone: the baseline of every comparison."""

from __future__ import annotations

from typing import Literal

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import nothing_retrieved
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.types import RagBatch, Retrieved


class NoRetrieval(Method):
    """Fine-tunes the generator on query and answer, without any passage.

    Args:
        generator: the model that writes the answer.
        optimizer: learning rates by parameter name, and their schedule.
        epochs: passes over the training queries.
        patience: stop after so many validations without a better score; None = never.
        decoding: "options" scores the task's allowed answers, "free" generates text.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        optimizer: OptimizerConfig | None = None,
        epochs: int = 10,
        patience: int | None = None,
        decoding: Literal["options", "free"] = "options",
    ) -> None:
        super().__init__(generator, optimizer, k=0, decoding=decoding)
        self.epochs = epochs
        self.patience = patience

    def phases(self) -> list[Phase]:
        """One phase: the generator's NLL."""
        return [self.generator_phase(self.epochs, self.patience)]

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Retrieve nothing."""
        return nothing_retrieved(batch)

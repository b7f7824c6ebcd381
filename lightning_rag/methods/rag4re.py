"""RAG4RE with a fine-tuned generator (arXiv 2404.13397, 2406.14745): retrieval is frozen."""

from __future__ import annotations

from typing import Literal

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.methods.base import Method
from lightning_rag.methods.choice import first_stage_choice
from lightning_rag.methods.optimization import OptimizerConfig
from lightning_rag.methods.phase import Phase
from lightning_rag.types import Passage, RagBatch, Rendered, Retrieved


class Rag4re(Method):
    """Fine-tunes the generator with retrieved passages in its prompt; nothing else learns.

    The frozen retriever is the data module's first stage (a sentence encoder as in the paper,
    BM25, random or oracle), so that it is one line of the data configuration.

    Args:
        generator: the model that writes the answer.
        optimizer: learning rates by parameter name, and their schedule.
        k: K, passages in the prompt; the paper uses the single most similar training sentence.
        with_label: show the label of a demonstration. The released code does not (spec B2); a
            small generator profits from it, so it is the default here.
        epochs: passes over the training queries.
        patience: stop after so many validations without a better score; None = never.
        decoding: "options" scores the task's allowed answers, "free" generates text.
    """

    def __init__(
        self,
        generator: GeneratorConfig,
        optimizer: OptimizerConfig | None = None,
        k: int = 1,
        with_label: bool = True,
        epochs: int = 10,
        patience: int | None = None,
        decoding: Literal["options", "free"] = "options",
    ) -> None:
        super().__init__(generator, optimizer, k=k, decoding=decoding)
        self.with_label = with_label
        self.epochs = epochs
        self.patience = patience

    def phases(self) -> list[Phase]:
        """One phase: the generator's NLL with passages in the prompt."""
        return [self.generator_phase(self.epochs, self.patience)]

    def retrieve(self, batch: RagBatch, k: int) -> Retrieved:
        """Take the first-stage retriever's best `k`."""
        return first_stage_choice(batch, k)

    def render(self, passage: Passage) -> Rendered:
        """Show a demonstration with or without its label."""
        return self.data.task.passage(passage, with_label=self.with_label)

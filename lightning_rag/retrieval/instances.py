"""Queries and labelled instances as vectors of their spans, and their way into a generator."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.backbones.encoder import END, Encoder, build_encoder
from lightning_rag.errors import UserError
from lightning_rag.types import Rendered

Vectors = Literal["spans", "mean", "first"]


class InstanceRetriever(nn.Module):
    """Embeds queries and instances slot by slot (ETRAG, arXiv 2406.03790).

    An instance is the mean vectors of its spans, say head, tail and label. A query has the same
    spans but no label: in that slot stand the closing special tokens, or a vector of its own.

    Args:
        encoder: the one encoder; its vectors keep their lengths, whatever `normalize` says.
        slots: V names of spans of an instance, of which "label" is none of a query's.
        vectors: "spans" = one vector for each slot; "mean" or "first" = one for the whole text, the
            mean over its tokens or the first token's (V = 1). Without slots, "spans" is the
            encoder's own pooling.
        query_label: what a query has in the slot "label": "separator", the mean over the special
            tokens that close its text, as the released code has it; "learned", a vector.
        corpus: texts for the tokeniser of a tiny encoder.

    Attributes:
        size: V, the number of vectors of a text.
    """

    def __init__(
        self,
        encoder: EncoderConfig,
        slots: Sequence[str],
        vectors: Vectors,
        query_label: Literal["separator", "learned"],
        corpus: Sequence[str],
    ) -> None:
        super().__init__()
        pooling = encoder.pooling if vectors == "spans" else vectors
        config = dataclasses.replace(encoder, normalize=False, pooling=pooling)
        self.encoder: Encoder = build_encoder(config, corpus)
        self.slots = tuple(slots) if vectors == "spans" else ()
        self.size = len(self.slots) or 1
        self.query_slots = tuple(END if slot == "label" else slot for slot in self.slots)
        self.label: nn.Parameter | None = None
        if query_label == "learned":
            if "label" not in self.slots:
                raise UserError(
                    "model.query_label is 'learned', which needs instances with a slot for their "
                    f"label; slots here: {list(self.slots) or 'none, one vector a text'}"
                )
            self.query_slots = tuple(slot for slot in self.slots if slot != "label")
            # As long as a random direction of the encoder's last layer normalisation.
            self.label = nn.Parameter(torch.randn(self.encoder.dimension))

    @property
    def tokens(self) -> int:
        """Tokens that went through the encoder so far."""
        return self.encoder.tokens

    @property
    def differentiated(self) -> int:
        """Those of them whose results have a gradient."""
        return self.encoder.differentiated

    @property
    def truncated(self) -> int:
        """Texts that lost tokens so far."""
        return self.encoder.truncated

    @property
    def separator(self) -> str:
        """What stands between an instance and its label: the tokeniser's separator, if any."""
        tokenizer = self.encoder.tokenizer
        return f" {tokenizer.sep_token or tokenizer.eos_token or '|'} "

    def queries(self, texts: Sequence[Rendered]) -> Tensor:
        """Embed queries.

        Args:
            texts: B texts.

        Returns:
            (B, V, D).
        """
        if not self.slots:
            whole: Tensor = self.encoder(texts)  # (B, D)
            return whole[:, None]
        vectors = self.encoder.spans(texts, self.query_slots)
        if self.label is None:
            return vectors
        label = self.label.to(vectors.dtype).expand(len(texts), 1, -1)
        place = self.slots.index("label")
        return torch.cat([vectors[:, :place], label, vectors[:, place:]], dim=1)

    def instances(self, texts: Sequence[Rendered]) -> Tensor:
        """Embed instances.

        Args:
            texts: N texts, each with all spans.

        Returns:
            (N, V, D).
        """
        if not self.slots:
            whole: Tensor = self.encoder(texts)  # (N, D)
            return whole[:, None]
        return self.encoder.spans(texts, self.slots)

    def encode(self, texts: Sequence[Rendered], batch_size: int) -> Tensor:
        """Embed many instances without gradient or dropout.

        Returns:
            (N, V, D) float32 on the CPU.
        """
        vectors = self.encoder.encode(texts, batch_size, self.slots)
        return vectors if self.slots else vectors[:, None]


class Projection(nn.Module):
    """The map from the retriever's space to the generator's, and the temperature.

    Args:
        width: D of the retriever.
        hidden_size: D of the generator's input embeddings.
        temperature: t, to begin with.
        learned: whether t learns, as its logarithm.
    """

    def __init__(self, width: int, hidden_size: int, temperature: float, learned: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, hidden_size)
        # There in either case, so that the same learning rates serve both.
        self.log_temperature = nn.Parameter(
            torch.tensor(math.log(temperature)), requires_grad=learned
        )

    @property
    def temperature(self) -> Tensor:
        """t, ()."""
        return self.log_temperature.exp()

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (..., D) to the generator's (..., D)."""
        mapped: Tensor = self.linear(vectors.to(self.linear.weight.dtype))
        return mapped

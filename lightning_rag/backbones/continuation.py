"""Prompts that were read once, and rows of tokens that go on from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_rag.backbones.scoring import logits_at

if TYPE_CHECKING:
    from lightning_rag.backbones.generator import Generator


class Continuation(ABC):
    """Rows that go on from prompts which a generator has read, keys and values kept.

    It starts with one row for each prompt. Gradients flow, unless the caller switched them off.

    Args:
        generator: what has read the prompts.
        logits: (B, V) after each prompt.

    Attributes:
        logits: (R, V) of the token that follows what a row has read so far.
    """

    def __init__(self, generator: Generator, logits: Tensor) -> None:
        self.generator = generator
        self.logits = logits

    def append(self, tokens: Tensor) -> Tensor:
        """Let each row read further tokens.

        Args:
            tokens: (R, T) long, T at least 1.

        Returns:
            (R, V) logits of the token that follows.

        Raises:
            ValueError: another shape.
        """
        rows, length = tokens.shape if tokens.dim() == 2 else (0, 0)
        if rows != len(self.logits) or not length:
            raise ValueError(
                f"tokens must be (R={len(self.logits)}, T) with T at least 1, "
                f"got {tuple(tokens.shape)}"
            )
        self.generator.tokens += tokens.numel()
        every = torch.arange(rows, device=tokens.device)
        self.logits = self.read(tokens, every, torch.full_like(every, length - 1))
        return self.logits

    def read(self, tokens: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Let each row read further tokens, and return logits at some of them.

        Args:
            tokens: (R, T) long, padded on the right; nothing can follow a padded row.
            rows: (N,) long.
            columns: (N,) long.

        Returns:
            (N, V) logits of the tokens that follow `tokens[rows, columns]`.
        """
        with self.generator.activations_kept(), logits_at(self.generator.model, rows, columns):
            return self._read(tokens)

    def spread(self, prompts: Tensor) -> None:
        """Make row r go on from what row `prompts[r]` has read so far.

        Args:
            prompts: (R,) long; rows may come more than once, and any order is legal.
        """
        self.logits = self.logits[prompts]
        self._spread(prompts)

    @abstractmethod
    def _read(self, tokens: Tensor) -> Tensor:
        """Run the model over tokens (R, T) that follow; return its logits."""

    @abstractmethod
    def _spread(self, prompts: Tensor) -> None:
        """Select rows of what the model has kept."""

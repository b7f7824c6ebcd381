"""Prompts that were read once, and rows of tokens that go on from them."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

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

    def spread(self, prompts: Tensor) -> Self:
        """Return rows of which row r goes on from what row `prompts[r]` has read so far.

        Args:
            prompts: (R,) long; rows may come more than once, and any order is legal.
        """
        other = copy.copy(self)
        other.logits = self.logits[prompts]
        other._share(prompts)
        return other

    @abstractmethod
    def _read(self, tokens: Tensor) -> Tensor:
        """Run the model over tokens (R, T) that follow; return its logits."""

    @abstractmethod
    def _share(self, prompts: Tensor) -> None:
        """Take rows of what the original has kept; the original stays as it is."""


def sample_tokens(
    continuation: Continuation, end: int, limit: int, *, temperature: float, top_p: float
) -> Tensor:
    """Draw tokens, row by row, until each row has ended.

    Draws come from torch's global random generator.

    Args:
        continuation: R rows.
        end: the token that ends a row.
        limit: tokens of the longest row, `end` included.
        temperature: divides the logits; above 0.
        top_p: as in `proposal`.

    Returns:
        (R, T) long, T at most `limit`; after a row's end only `end`.
    """
    logits = continuation.logits
    drawn = torch.empty(len(logits), 0, dtype=torch.long, device=logits.device)
    ended = torch.zeros(len(logits), 1, dtype=torch.bool, device=logits.device)
    while True:
        weights = proposal(logits.float(), temperature=temperature, top_p=top_p).softmax(dim=-1)
        token = weights.multinomial(1).masked_fill(ended, end)  # (R, 1)
        drawn = torch.cat([drawn, token], dim=1)
        ended = token == end
        if drawn.shape[1] == limit or ended.all():
            return drawn
        logits = continuation.append(token)


def proposal(logits: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Return logits of what is sampled from, with -inf for what never is.

    Args:
        logits: (..., V); -inf is legal.
        temperature: divides the logits; above 0.
        top_p: keep the most probable tokens, as few as have this probability together (nucleus
            sampling, Holtzman et al. 2020, arXiv 1904.09751); above 0, 1 keeps all.

    Returns:
        (..., V) logits, their softmax being what is sampled from.

    Raises:
        ValueError: a temperature or top_p out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    logits = logits / temperature
    if top_p == 1:
        return logits
    ordered, index = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # probability of the more probable tokens
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= top_p)
    return logits.masked_fill(dropped, float("-inf"))

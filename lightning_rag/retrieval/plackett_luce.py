"""Plackett-Luce selector: one score for each candidate, lists drawn without replacement."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.backbones.cross_encoder import CrossEncoder, build_cross_encoder
from lightning_rag.backbones.encoder import Encoder, build_encoder
from lightning_rag.errors import UserError
from lightning_rag.functional.permutation import plackett_luce_log_prob, sample_plackett_luce
from lightning_rag.retrieval.selector import (
    Drawing,
    Offer,
    Sampled,
    Selector,
    available,
    check_lists,
    distinct,
)


class PlackettLuceSelector(Selector):
    """Scores each candidate by itself; a list takes one after the other, in proportion to exp(s).

    This is the factorisation of DRO's Eq. 1 with scores that do not depend on what was chosen
    before, so it cannot weigh passages against each other; the scoring is that of Stochastic RAG
    (Zamani & Bendersky 2024, arXiv 2405.02816).

    Args:
        scorer: "bi-encoder" = inner product of the embeddings of query and passage;
            "cross-encoder" = one logit of the two read together.
        config: what the scorer is made of.
        corpus: texts for the tokeniser of a tiny model.
        k: K, length of the lists.
        temperature: divides the scores; part of the selector, unlike `proposal_temperature`.
        proposal_temperature: see `Selector`.
        top_p: see `Selector`.

    Raises:
        UserError: a setting that is not legal.
    """

    def __init__(
        self,
        scorer: Literal["bi-encoder", "cross-encoder"],
        config: EncoderConfig,
        corpus: Iterable[str],
        k: int,
        temperature: float,
        proposal_temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(k, proposal_temperature, top_p)
        if not 0 < temperature < math.inf:
            raise UserError(f"a selector's temperature must be above 0, got {temperature}")
        if scorer not in ("bi-encoder", "cross-encoder"):
            raise UserError(f"scorer must be 'bi-encoder' or 'cross-encoder', got {scorer!r}")
        self.temperature = temperature
        self.scorer: Encoder | CrossEncoder
        if scorer == "bi-encoder":
            self.scorer = build_encoder(config, corpus)
        else:
            self.scorer = build_cross_encoder(config, corpus)

    def scores(self, offer: Offer) -> Tensor:
        """Return the scores (B, N) float32, over the temperature; -inf where nothing is."""
        there = available(offer, self.scorer.device)  # (B, N)
        nothing = torch.full(there.shape, -torch.inf, device=there.device)
        if not there.any():
            return nothing
        if isinstance(self.scorer, CrossEncoder):
            found = self._logits(self.scorer, offer)
        else:
            found = self._inner_products(self.scorer, offer)
        rows, columns = there.nonzero(as_tuple=True)
        return nothing.index_put((rows, columns), found / self.temperature)

    def sample(self, offer: Offer, num_samples: int) -> Sampled:
        """Draw S lists of each query, without gradient or dropout, from torch's global generator.

        Args:
            offer: B queries with their candidates.
            num_samples: S.
        """
        with self._evaluating():
            scores = self.scores(offer)  # (B, N)
        if self.top_p < 1:  # what remains in the set changes with each choice
            rows = scores.repeat_interleave(num_samples, dim=0)  # (B * S, N)
            there = available(offer, rows.device).repeat_interleave(num_samples, dim=0)
            drawing = Drawing(there, self.proposal_temperature, self.top_p)
            for _ in range(self.k):
                drawing.take(rows)
            return drawing.sampled(len(scores))
        proposal = scores / self.proposal_temperature
        positions = sample_plackett_luce(proposal, self.k, num_samples)  # (B, S, K)
        log_prob = plackett_luce_log_prob(scores[:, None], positions)  # (B, S)
        log_proposal = plackett_luce_log_prob(proposal[:, None], positions)
        return Sampled(
            positions, log_prob, log_proposal, torch.ones_like(log_prob, dtype=torch.bool)
        )

    def log_prob(self, offer: Offer, positions: Tensor) -> Tensor:
        """Log-probability (B, S) of lists (B, S, K), in nats; see `Selector`."""
        check_lists(offer, positions)
        scores = self.scores(offer)  # (B, N)
        return plackett_luce_log_prob(scores[:, None], positions.to(scores.device))

    def rank(self, offer: Offer) -> Tensor:
        """Return the scores (B, N) without gradient or dropout."""
        with self._evaluating():
            return self.scores(offer)

    def _logits(self, scorer: CrossEncoder, offer: Offer) -> Tensor:
        """Score all pairs that there are, query by query: (P,)."""
        pairs = [
            (query, passage)
            for query, passages in zip(offer.queries, offer.passages, strict=True)
            for passage in passages
        ]
        queries, candidates = zip(*pairs, strict=True)
        logits: Tensor = scorer(queries, candidates)
        return logits

    def _inner_products(self, scorer: Encoder, offer: Offer) -> Tensor:
        """Score all pairs that there are, query by query: (P,). Equal passages are encoded once."""
        texts, index = distinct(text for passages in offer.passages for text in passages)
        counts = torch.tensor([len(passages) for passages in offer.passages])
        queries = scorer(offer.queries).float()  # (B, D)
        vectors = scorer(texts).float()  # (U, D)
        owners = torch.arange(len(counts)).repeat_interleave(counts).to(queries.device)  # (P,)
        # Multiplied and added, not a matrix product: mixed precision would round that to 8 bits.
        products: Tensor = (queries[owners] * vectors[index]).sum(dim=-1)
        return products

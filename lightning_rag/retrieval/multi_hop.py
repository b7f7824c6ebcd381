"""Multi-hop dense selector: the query is embedded anew with each passage that was chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_rag.backbones.config import EncoderConfig
from lightning_rag.backbones.encoder import build_encoder
from lightning_rag.errors import UserError
from lightning_rag.retrieval.selector import (
    Drawing,
    Offer,
    Sampled,
    Selector,
    available,
    check_lists,
    distinct,
)
from lightning_rag.types import Rendered

History = tuple[int, tuple[int, ...]]  # a query of the batch, and what was chosen for it so far


class MultiHopSelector(Selector):
    """Chooses by inner products with the query and the passages chosen before.

    With f an encoder of texts and t the temperature,

        p(z_j | z_1 … z_(j-1), x) ∝ exp(f(x, d_(z_1), …, d_(z_(j-1))) · f(d_(z_j)) / t)

    over the candidates that are left. This is DRO's Eq. 1 with the retriever of MDR (Xiong et al.
    2021, arXiv 2009.12756, Eq. 2): unlike Plackett-Luce scores, a choice depends on those before,
    as a question of two hops needs it; unlike a generative selector it never reads all candidates
    together.

    Args:
        config: what the encoder is made of. What exceeds its `max_length` is cut from the end.
        corpus: texts for the tokeniser of a tiny model.
        k: K, length of the lists.
        temperature: t; part of the selector, unlike `proposal_temperature`.
        proposal_temperature: see `Selector`.
        top_p: see `Selector`.

    Raises:
        UserError: a setting that is not legal.
    """

    def __init__(
        self,
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
        self.temperature = temperature
        self.encoder = build_encoder(config, corpus)

    def sample(self, offer: Offer, num_samples: int) -> Sampled:
        """Draw S lists of each query, without gradient or dropout, from torch's global generator.

        Args:
            offer: B queries with their candidates.
            num_samples: S.
        """
        with self._evaluating():
            there = available(offer, self.encoder.device)  # (B, N)
            there = there.repeat_interleave(num_samples, dim=0)  # (B * S, N)
            drawing = Drawing(there, self.proposal_temperature, self.top_p)
            self._choose(offer, drawing, num_samples)
            return drawing.sampled(len(offer.queries))

    def log_prob(self, offer: Offer, positions: Tensor) -> Tensor:
        """Log-probability (B, S) of lists (B, S, K), in nats; see `Selector`.

        Lists of a query that begin alike share the embeddings of their beginnings.
        """
        lists = [
            (query, chosen)
            for query, of_query in enumerate(check_lists(offer, positions))
            for chosen in of_query
        ]
        nodes: dict[History, int] = {}
        for query, chosen in lists:
            for place in range(len(chosen)):
                nodes.setdefault((query, tuple(chosen[:place])), len(nodes))
        if not nodes:
            return torch.zeros(positions.shape[:2], device=self.encoder.device)
        histories = list(nodes)
        left = available(offer, self.encoder.device)[[query for query, _ in histories]]  # (H, N)
        for node, (_, chosen_before) in enumerate(histories):
            left[node, list(chosen_before)] = False
        logits = self._logits(offer, self._passages(offer), histories)  # (H, N)
        log_p = logits.masked_fill(~left, -torch.inf).log_softmax(dim=-1)
        steps = [
            (number, nodes[query, tuple(chosen[:place])], column)
            for number, (query, chosen) in enumerate(lists)
            for place, column in enumerate(chosen)
        ]
        number, node, column = torch.tensor(steps, device=log_p.device).T
        total = log_p.new_zeros(len(lists)).index_add(0, number, log_p[node, column])
        return total.view(positions.shape[:2])

    def rank(self, offer: Offer) -> Tensor:
        """Score the candidates (B, N) without gradient or dropout; see `Drawing.ranking`."""
        with self._evaluating():
            drawing = Drawing(available(offer, self.encoder.device), 0, 1.0)
            self._choose(offer, drawing, 1)
            return drawing.ranking()

    def _choose(self, offer: Offer, drawing: Drawing, copies: int) -> None:
        """Let a drawing take K candidates of each query, `copies` times."""
        if not drawing.available.any():
            return drawing.fill(self.k)
        passages = self._passages(offer)
        chosen: list[History] = [
            (query, ()) for query in range(len(offer.queries)) for _ in range(copies)
        ]
        for _ in range(self.k):
            numbers = {history: number for number, history in enumerate(dict.fromkeys(chosen))}
            logits = self._logits(offer, passages, list(numbers))  # (H, N)
            taken = drawing.take(logits[[numbers[history] for history in chosen]])  # (B * S,)
            chosen = [
                (query, (*before, column) if column >= 0 else before)
                for (query, before), column in zip(chosen, taken.tolist(), strict=True)
            ]
        return None

    def _logits(self, offer: Offer, passages: Tensor, histories: Sequence[History]) -> Tensor:
        """Return the scores (H, N) of all candidates (B, N, D) after H histories."""
        texts = []
        for query, chosen in histories:
            read = [offer.queries[query], *(offer.passages[query][column] for column in chosen)]
            texts.append(Rendered(" ".join(text.text for text in read)))
        queries = self.encoder(texts).float()  # (H, D)
        owned = passages[[query for query, _ in histories]]  # (H, N, D)
        # Multiplied and added, not a matrix product: mixed precision would round that to 8 bits.
        products: Tensor = (queries[:, None] * owned).sum(dim=-1)
        return products / self.temperature

    def _passages(self, offer: Offer) -> Tensor:
        """Return the embeddings (B, N, D) float32 of all candidates; equal ones encoded once."""
        texts, numbers = distinct(text for passages in offer.passages for text in passages)
        vectors = self.encoder(texts).float()[numbers]  # (P, D), query by query
        there = available(offer, vectors.device)  # (B, N)
        empty = vectors.new_zeros(*there.shape, vectors.shape[-1])
        placed: Tensor = empty.index_put(there.nonzero(as_tuple=True), vectors)
        return placed

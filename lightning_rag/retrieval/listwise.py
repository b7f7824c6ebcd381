"""Listwise generative selector: a language model reads all candidates and names the best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.backbones.config import GeneratorConfig
from lightning_rag.backbones.factory import build_generator
from lightning_rag.backbones.scoring import ScoringPlan
from lightning_rag.errors import UserError
from lightning_rag.retrieval.identifiers import (
    LETTERS,
    ChainTokens,
    Kind,
    chain,
    find_chain_tokens,
    mend,
    name,
    parse,
)
from lightning_rag.retrieval.selector import (
    Drawing,
    Offer,
    Sampled,
    Selector,
    available,
    check_lists,
    numbered,
)
from lightning_rag.types import Prompt, Rendered


class ListwiseSelector(Selector):
    """A generator reads the query and N named passages and writes "[9] > [20] > [6]" (DRO, § 2.2).

    With `decoding="identifiers"` the model only ever chooses among the identifiers of candidates
    that are left: their logits are normalised among themselves, and brackets and separators are
    given. Every output is a list, and the probabilities of all lists sum to 1.

    With `decoding="string"` the model writes freely, as in the released code, and what it writes is
    mended. The probability of a list is then that of its whole chain, end included; those of all
    lists sum to less than 1. Many texts are mended into one list, so the probability that a list is
    drawn is not known: `log_proposal` equals `log_prob`, as if the lists came from the selector.

    Args:
        config: what the generator is made of. Its `max_source_length` must hold all passages:
            those that do not fit are chosen unseen.
        corpus: texts for the tokeniser of a tiny model.
        k: K, length of the lists.
        size: N, the largest number of candidates.
        decoding: "identifiers" or "string".
        identifiers: passages are called by "numbers" or "letters"; "auto" takes numbers if all of
            them are single tokens, else letters. With "string", "auto" is numbers.
        instruction: put the request into words around the query, for pretrained models.
        proposal_temperature: see `Selector`.
        top_p: see `Selector`.

    Raises:
        UserError: a setting that is not legal, identifiers that are not single tokens, or a chain
            that is longer than the generator's `max_target_length`.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        corpus: Iterable[str],
        k: int,
        size: int,
        decoding: Literal["identifiers", "string"] = "identifiers",
        identifiers: Literal["auto", "numbers", "letters"] = "auto",
        instruction: bool = False,
        proposal_temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> None:
        super().__init__(k, proposal_temperature, top_p)
        if size < k:
            raise UserError(
                f"a selector needs at least k={k} candidates to choose from, got {size}"
            )
        if decoding not in ("identifiers", "string"):
            raise UserError(f"decoding must be 'identifiers' or 'string', got {decoding!r}")
        if identifiers not in ("auto", "numbers", "letters"):
            raise UserError(
                f"identifiers must be 'auto', 'numbers' or 'letters', got {identifiers!r}"
            )
        self.size = size
        self.decoding = decoding
        self.identifiers = identifiers
        self.instruction = instruction
        self.generator = build_generator(config, corpus)
        self._chain_tokens: tuple[object, ChainTokens] | None = None
        if decoding == "identifiers":
            self.chain_tokens()
        else:
            self._check_chains()

    @property
    def kind(self) -> Kind:
        """What the candidates are called by."""
        if self.decoding == "identifiers":
            return self.chain_tokens().kind
        return "letters" if self.identifiers == "letters" else "numbers"

    def chain_tokens(self) -> ChainTokens:
        """Return the tokens of chains, read anew if a checkpoint has brought another tokeniser."""
        tokenizer = self.generator.tokenizer
        if self._chain_tokens is None or self._chain_tokens[0] is not tokenizer:
            found = find_chain_tokens(self.generator, self.identifiers, self.size)
            self._chain_tokens = tokenizer, found
        return self._chain_tokens[1]

    def sample(self, offer: Offer, num_samples: int) -> Sampled:
        """Draw S lists of each query, without gradient or dropout, from torch's global generator.

        Args:
            offer: B queries with their candidates.
            num_samples: S.
        """
        with self._evaluating():
            if self.decoding == "string":
                return self._sample_texts(offer, num_samples)
            there = available(offer, self.generator.device)  # (B, N)
            there = there.repeat_interleave(num_samples, dim=0)  # (B * S, N)
            drawing = Drawing(there, self.proposal_temperature, self.top_p)
            self._choose(offer, drawing, num_samples)
            return drawing.sampled(len(offer.queries))

    def log_prob(self, offer: Offer, positions: Tensor) -> Tensor:
        """Log-probability (B, S) of lists (B, S, K), in nats; see `Selector`.

        All lists of a query are scored at once; with identifiers its prompt is read once.
        """
        lists = check_lists(offer, positions)
        if self.decoding == "string":
            return self._log_prob_of_chains(offer, lists)
        plan = self._plan(offer, lists)
        if not plan.inner_nodes:  # nowhere is more than one candidate left
            return torch.zeros(positions.shape[:2], device=self.generator.device)
        return torch.stack(self.generator.score_plan(self.prompts(offer), plan))

    def rank(self, offer: Offer) -> Tensor:
        """Score the candidates (B, N) without gradient or dropout; see `Selector`.

        With identifiers as `Drawing.ranking` says; in a string all are ranked as written, mended.
        """
        with self._evaluating():
            if self.decoding == "string":
                return self._rank_by_text(offer)
            drawing = Drawing(available(offer, self.generator.device), 0, 1.0)
            self._choose(offer, drawing, 1)
            return drawing.ranking()

    def prompts(self, offer: Offer) -> list[Prompt]:
        """Return what the generator reads for each query: its named candidates, all of them.

        Raises:
            ValueError: more candidates than the selector was made for.
        """
        if offer.size > self.size:
            raise ValueError(f"the selector has names for {self.size} candidates, not {offer.size}")
        kind = self.kind
        prompts = []
        for query, passages in zip(offer.queries, offer.passages, strict=True):
            named = [numbered(p, name(kind, place)) for place, p in enumerate(passages)]
            if self.instruction and passages:
                query = instruct(query, len(passages), min(self.k, len(passages)), kind)
            prompts.append(Prompt(query, tuple(named)))
        return prompts

    def _choose(self, offer: Offer, drawing: Drawing, copies: int) -> None:
        """Let a drawing take K candidates of each query, `copies` times; keys and values kept."""
        tokens = self.chain_tokens()
        continuation = self.generator.begin(self.prompts(offer), copies)
        device = drawing.available.device
        identifiers = torch.tensor(tokens.identifiers[: offer.size], device=device)  # (N,)
        rows = len(drawing.available)
        following = torch.tensor(tokens.before, device=device).expand(rows, -1)  # (R, T)
        between = torch.tensor(tokens.between, dtype=torch.long, device=device).expand(rows, -1)
        for _ in range(self.k):
            if not drawing.available.any():
                break
            choice = drawing.take(continuation.append(following)[:, identifiers])  # (R,)
            # A finished list goes on with any identifier; nothing of it counts.
            following = torch.cat([identifiers[choice.clamp(min=0), None], between], dim=1)
        drawing.fill(self.k)

    def _plan(self, offer: Offer, lists: list[list[list[int]]]) -> ScoringPlan:
        """Put all lists of all queries into one plan.

        A node is what was chosen so far, its children are the candidates that are left. Lists that
        begin alike share their first nodes.
        """
        tokens = self.chain_tokens()
        plan = ScoringPlan([], [], [], [], [], [], [], [], [], [])
        for prompt, (passages, of_query) in enumerate(zip(offer.passages, lists, strict=True)):
            rows: dict[tuple[int, ...], int] = {}
            nodes: dict[tuple[int, ...], int] = {}
            for chosen in of_query:
                # The last candidate that is left is taken without a decision.
                decided = min(len(chosen), len(passages) - 1)
                path = []
                for place in range(decided):
                    before = tuple(chosen[:place])
                    left = [i for i in range(len(passages)) if i not in before]
                    if before not in nodes:
                        whole = tuple(chosen[: decided - 1])
                        if whole not in rows:
                            rows[whole] = len(plan.row_tokens)
                            plan.row_prompts.append(prompt)
                            plan.row_tokens.append(tokens.prefix(whole))
                        nodes[before] = len(plan.children)
                        plan.inner_nodes.append(nodes[before])
                        plan.inner_rows.append(rows[whole])
                        plan.inner_columns.append(len(tokens.prefix(before)) - 1)
                        plan.children.append(tuple(tokens.identifiers[i] for i in left))
                    path.append((nodes[before], left.index(chosen[place])))
                plan.paths.append(tuple(path))
            plan.counts.append(len(of_query))
        return plan

    def _sample_texts(self, offer: Offer, num_samples: int) -> Sampled:
        """Draw S texts for each query, and mend those that are no lists."""
        prompts = self.prompts(offer)
        texts = self.generator.sample(
            prompts, num_samples, temperature=self.proposal_temperature, top_p=self.top_p
        )
        kind = self.kind
        lists, valid, repeated, chains = [], [], [], []
        for prompt, outputs in zip(prompts, texts, strict=True):
            for output in outputs:
                found = parse(kind, output)
                chosen = mend(found, len(prompt.passages))[: self.k]
                valid.append(found == chosen)
                lists.append(chosen + [-1] * (self.k - len(chosen)))
                repeated.append(prompt)
                chains.append(chain(kind, chosen))
        shape = len(prompts), num_samples
        log_prob = self.generator.score(repeated, chains).view(shape)
        positions = torch.tensor(lists, device=log_prob.device).view(*shape, self.k)
        nothing = (positions < 0).all(dim=-1)  # (B, S): no candidate, no choice
        log_prob = log_prob.masked_fill(nothing, 0)
        whole = torch.tensor(valid, device=log_prob.device).view(shape) | nothing
        return Sampled(positions, log_prob, log_prob, whole)

    def _log_prob_of_chains(self, offer: Offer, lists: list[list[list[int]]]) -> Tensor:
        """Log-likelihood (B, S) of the chains of lists; equal ones are read once."""
        prompts = self.prompts(offer)
        kind = self.kind
        pairs = [
            (b, chain(kind, chosen)) for b, of_query in enumerate(lists) for chosen in of_query
        ]
        distinct = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        log_p = self.generator.log_likelihood(
            [prompts[prompt] for prompt, _ in distinct], [text for _, text in distinct]
        )
        index = torch.tensor([distinct[pair] for pair in pairs], device=log_p.device)
        nothing = torch.tensor([not text for _, text in pairs], device=log_p.device)
        return log_p[index].masked_fill(nothing, 0).view(len(prompts), -1)

    def _rank_by_text(self, offer: Offer) -> Tensor:
        """Score the candidates (B, N) by their places in what the model writes, mended."""
        there = available(offer, self.generator.device)  # (B, N)
        scores = torch.zeros(there.shape, device=there.device)
        outputs = self.generator.generate(self.prompts(offer))
        for row, output in enumerate(outputs):
            found = parse(self.kind, output)
            order = mend(found, len(offer.passages[row]))
            self.mended += bool(order) and found != order[: self.k]
            scores[row, order] = torch.arange(len(order), 0.0, -1.0, device=there.device)
        return scores.masked_fill(~there, -torch.inf)

    def _check_chains(self) -> None:
        """Refuse more candidates than letters, and chains longer than the generator writes."""
        if self.kind == "letters" and self.size > len(LETTERS):
            raise UserError(
                f"identifiers: 'letters' has names for {len(LETTERS)} candidates, got {self.size}; "
                "legal: 'numbers'"
            )
        longest = chain(self.kind, range(self.size - self.k, self.size))
        (piece,) = self.generator.answer_pieces([longest])
        needed = len(self.generator.answer_prefix) + len(piece.ids) + 1
        if needed > self.generator.config.max_target_length:
            raise UserError(
                f"max_target_length must be at least {needed} for chains of {self.k} identifiers, "
                f"got {self.generator.config.max_target_length}"
            )


def instruct(query: Rendered, count: int, k: int, kind: Kind) -> Rendered:
    """Put a query into a request to rank its passages (DRO, section 2.2, in other words).

    Args:
        query: the query; its spans are those of its last occurrence in the request.
        count: number of passages.
        k: number of identifiers to write.
        kind: what the passages are called by.
    """
    start = (
        f"You rank passages. Each of the {count} passages begins with its identifier in brackets. "
        f'Rank them by how useful they are for the query "{query.text}": a useful passage is about '
        "what is asked and contains the information that an answer needs. Write the identifiers of "
        f"the {k} most useful passages, the most useful first, in the form "
        f"{chain(kind, (1, 0))}, and nothing else. Query: "
    )
    spans = {
        span: (first + len(start), last + len(start)) for span, (first, last) in query.spans.items()
    }
    return Rendered(start + query.text, spans)

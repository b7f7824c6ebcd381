"""What a selector is: a distribution over ordered lists of a query's candidates."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_rag.backbones.backbone import Backbone
from lightning_rag.backbones.continuation import proposal
from lightning_rag.backbones.inputs import text_key
from lightning_rag.errors import UserError
from lightning_rag.functional.permutation import sample_plackett_luce
from lightning_rag.types import Rendered


@dataclass
class Offer:
    """B queries and the candidates that a selector may choose from."""

    queries: list[Rendered]  # B
    passages: list[list[Rendered]]  # B lists of up to N, in the first stage's order
    size: int  # N

    def __post_init__(self) -> None:
        longest = max(map(len, self.passages), default=0)
        if len(self.queries) != len(self.passages) or longest > self.size:
            raise ValueError(
                f"an offer is one list of up to {self.size} passages for each of "
                f"{len(self.queries)} queries, got {len(self.passages)} lists of up to {longest}"
            )


@dataclass
class Sampled:
    """S ordered lists of K candidates for each of B queries."""

    positions: Tensor  # (B, S, K) long; columns of the offer, best first, -1 = nothing was left
    log_prob: Tensor  # (B, S) in nats, under the selector
    log_proposal: Tensor  # (B, S) in nats, under what the lists were drawn from
    valid: Tensor  # (B, S) bool; False = written by the model in a form that had to be mended


class Selector(nn.Module, ABC):
    """Chooses and orders K of the N candidates of a query: p(z|x) of DRO (arXiv 2505.03075, Eq. 1).

    A query with fewer than K candidates gets lists of all of them.

    Args:
        k: K, length of the lists.
        proposal_temperature: what divides the logits of each choice when lists are drawn; 1 draws
            from the selector itself, as the importance weights of Eq. 7 require (the released code
            draws at 0.7).
        top_p: draw among the smallest set of candidates that together have this probability; less
            than 1 never draws the others, for which no weight can make up (0.95 in the code).

    Attributes:
        mended: number of outputs of `rank` so far that were no list and had to be mended.

    Raises:
        UserError: a number out of its range.
    """

    def __init__(self, k: int, proposal_temperature: float, top_p: float) -> None:
        super().__init__()
        if k < 1:
            raise UserError(f"a selector's k must be at least 1, got {k}")
        if not 0 < proposal_temperature < math.inf:
            raise UserError(f"proposal_temperature must be above 0, got {proposal_temperature}")
        if not 0 < top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {top_p}")
        self.k = k
        self.mended = 0
        self.proposal_temperature = proposal_temperature
        self.top_p = top_p

    @property
    def tokens(self) -> int:
        """Tokens that went through the selector's model so far."""
        return sum(model.tokens for model in self._models())

    @property
    def differentiated(self) -> int:
        """Those of them whose results have a gradient."""
        return sum(model.differentiated for model in self._models())

    @property
    def truncated(self) -> int:
        """Texts that lost tokens so far."""
        return sum(model.truncated for model in self._models())

    def _models(self) -> list[Backbone]:
        return [model for model in self.children() if isinstance(model, Backbone)]

    @abstractmethod
    def sample(self, offer: Offer, num_samples: int) -> Sampled:
        """Draw S lists of each query, without gradient or dropout, from torch's global generator.

        Args:
            offer: B queries with their candidates.
            num_samples: S.
        """

    @abstractmethod
    def log_prob(self, offer: Offer, positions: Tensor) -> Tensor:
        """Log-probability of lists, in nats.

        Args:
            offer: B queries with their candidates.
            positions: (B, S, K) columns of the offer, best first; -1 = nothing, which counts 0.
                K need not be the selector's own.

        Returns:
            (B, S) float32; differentiable in the weights.

        Raises:
            ValueError: another shape, a candidate that is not there, or one that is twice in a
                list.
        """

    @abstractmethod
    def rank(self, offer: Offer) -> Tensor:
        """Score the candidates without gradient or dropout.

        Returns:
            (B, N) float32, larger is better, -inf where there is no candidate. The K best, in
            order, are the list that takes the most probable candidate at each step.
        """

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Do without gradient and dropout within this context."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)


class Drawing:
    """R ordered lists that grow by one candidate at a time, without replacement.

    Args:
        available: (R, N) bool; the candidates that there are.
        temperature: divides the logits; 0 takes the most probable candidate.
        top_p: draw among the smallest set of candidates that have this probability.

    Attributes:
        places: the choices so far, each (R,); -1 where no candidate was left.
        log_prob: (R,) log-probability of the lists so far, by the logits as they are.
        log_proposal: (R,) the same by what was drawn from; 0 at temperature 0.
        last: (R, N) log-probabilities before the last choice, by the logits as they are.
    """

    def __init__(self, available: Tensor, temperature: float, top_p: float) -> None:
        self.offered = available
        self.available = available.clone()
        self.temperature = temperature
        self.top_p = top_p
        self.places: list[Tensor] = []
        self.log_prob = torch.zeros(len(available), device=available.device)
        self.log_proposal = torch.zeros_like(self.log_prob)
        self.last = torch.zeros_like(available, dtype=torch.float32)

    def take(self, logits: Tensor) -> Tensor:
        """Choose the next candidate of each list.

        Args:
            logits: (R, N); those of candidates that are not there, or had already, do not count.

        Returns:
            (R,) long; -1 where no candidate is left.

        Raises:
            ValueError: a logit that is not a number.
        """
        left = logits.float().masked_fill(~self.available, -torch.inf)
        self.last = _normalized(left)
        if self.temperature:
            drawn_from = proposal(left, temperature=self.temperature, top_p=self.top_p)
            log_proposal = _normalized(drawn_from)
            choice = sample_plackett_luce(log_proposal, 1, 1)[:, 0, 0]  # (R,)
        else:
            log_proposal = torch.zeros_like(left)
            choice = left.argmax(dim=-1).masked_fill(~self.available.any(dim=-1), -1)
        nothing = choice < 0
        column = choice.clamp(min=0)[:, None]  # (R, 1)
        self.log_prob += self.last.gather(1, column)[:, 0].masked_fill(nothing, 0)
        self.log_proposal += log_proposal.gather(1, column)[:, 0].masked_fill(nothing, 0)
        self.available.scatter_(1, column, False)
        self.places.append(choice)
        return choice

    def fill(self, k: int) -> None:
        """Let lists that ran out of candidates have `k` places too."""
        nothing = torch.full_like(self.log_prob, -1, dtype=torch.long)  # (R,)
        self.places += [nothing] * (k - len(self.places))

    def ranking(self) -> Tensor:
        """Return scores (R, N) whose largest are the choices, in their order.

        The chosen ones have L, L - 1, ..., 1, with L the number of choices. The others have their
        log-probability at the last of them, which is at most 0, and -inf where no candidate is.
        """
        scores = self.last.masked_fill(~self.offered, -torch.inf)
        for place, choice in enumerate(self.places):
            chosen = torch.arange(scores.shape[1], device=scores.device) == choice[:, None]
            scores = scores.masked_fill(chosen, float(len(self.places) - place))
        return scores

    def sampled(self, queries: int) -> Sampled:
        """Return the lists as S = R / B of each of B queries, in the order of the rows."""
        log_prob = self.log_prob.view(queries, -1)  # (B, S)
        positions = torch.stack(self.places, dim=-1)  # (R, K)
        return Sampled(
            positions.view(*log_prob.shape, -1),
            log_prob,
            self.log_proposal.view_as(log_prob),
            torch.ones_like(log_prob, dtype=torch.bool),
        )


def available(offer: Offer, device: torch.device) -> Tensor:
    """Return which of the N columns hold a candidate: (B, N) bool."""
    counts = torch.tensor([len(passages) for passages in offer.passages], device=device)  # (B,)
    return torch.arange(offer.size, device=device) < counts[:, None]


def distinct(texts: Iterable[Rendered]) -> tuple[list[Rendered], list[int]]:
    """Return the different texts, and for each of `texts` which of them it is."""
    numbers: dict[tuple[object, ...], int] = {}
    found: list[Rendered] = []
    index = []
    for text in texts:
        key = text_key(text)
        if key not in numbers:
            numbers[key] = len(found)
            found.append(text)
        index.append(numbers[key])
    return found, index


def check_lists(offer: Offer, positions: Tensor) -> list[list[list[int]]]:
    """Return lists (B, S, K) as numbers, without the places that hold nothing.

    Raises:
        ValueError: another shape, a candidate that is not there, or one that is twice in a list.
    """
    if positions.dim() != 3 or len(positions) != len(offer.queries):
        raise ValueError(
            f"positions must be (B={len(offer.queries)}, S, K), got {tuple(positions.shape)}"
        )
    queries: list[list[list[int]]] = positions.tolist()
    for row, (lists, passages) in enumerate(zip(queries, offer.passages, strict=True)):
        for number, places in enumerate(lists):
            chosen = [place for place in places if place != -1]
            if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(len(passages))):
                raise ValueError(
                    f"a list must hold different candidates, 0 to {len(passages) - 1} for query "
                    f"{row}, or -1 for nothing, got {places}"
                )
            lists[number] = chosen
    return queries


def numbered(rendered: Rendered, name: str) -> Rendered:
    """Return "[name] text"; the name survives truncation as the text's spans do."""
    mark = f"[{name}] "
    spans = {
        span: (start + len(mark), end + len(mark)) for span, (start, end) in rendered.spans.items()
    }
    return Rendered(mark + rendered.text, {"name": (0, len(mark) - 1), **spans})


def _normalized(logits: Tensor) -> Tensor:
    """Log-probabilities (..., N); a row of -inf alone stays one."""
    nothing = (logits == -torch.inf).all(dim=-1, keepdim=True)
    return logits.log_softmax(dim=-1).masked_fill(nothing, -torch.inf)

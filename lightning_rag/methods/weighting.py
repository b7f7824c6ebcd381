"""How much each sampled permutation of a query counts: DRO's importance weights and their kin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.errors import UserError
from lightning_rag.functional.permutation import (
    effective_sample_size,
    first_occurrences,
    hard_max_weights,
    importance_weights,
    log_mean_exp,
    raw_weights,
    uniform_weights,
)
from lightning_rag.retrieval.selector import Sampled

USELESS = math.log(0.01)  # below it no sampled list makes the answer likely (spec A8)


@dataclass
class WeightingConfig:
    """Weights of the S sampled permutations of a query (DRO, arXiv 2505.03075, section 4).

    Args:
        kind: "self_normalized", softmax of the answers' log-likelihoods (Eq. 19); "raw", the
            likelihoods themselves: REINFORCE with the likelihood as reward (Algorithm 1 as
            printed); "uniform", 1 / S: plain fine-tuning on one's own choices; "hard_max", 1 for
            the best sample.
        temperature: divides the log-weights before they are normalised.
        length_normalized: mean instead of sum of an answer's token log-likelihoods, as the released
            code has it; only with the sum are the weights ratios to the posterior (spec A1).
        duplicates: of equal samples, "keep" all, so that multiplicity stands for the prior (A5);
            "merge" keeps one and weights it by prior times likelihood; "released" keeps one without
            the prior, as the released code does.
        proposal_correction: where the samples come from another distribution than the selector's
            (`selector.proposal_temperature`, `selector.top_p`), weight by the ratio of both (A4).
        min_log_likelihood: leave a query out whose best sample is less likely, in nats; None = all
            are kept, as in the paper (A8).
        query_weight: "equal", or "marginal": times the mean likelihood, an estimate of p(y|x).
    """

    kind: Literal["self_normalized", "raw", "uniform", "hard_max"] = "self_normalized"
    temperature: float = 1.0
    length_normalized: bool = False
    duplicates: Literal["keep", "merge", "released"] = "keep"
    proposal_correction: bool = True
    min_log_likelihood: float | None = None
    query_weight: Literal["equal", "marginal"] = "equal"

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise UserError(f"model.weighting.temperature is {self.temperature}; legal: above 0")
        if self.duplicates != "keep" and self.kind != "self_normalized":
            raise UserError(
                f"model.weighting.duplicates is {self.duplicates!r}; legal with "
                f"kind: {self.kind}: keep"
            )

    @property
    def reduction(self) -> Literal["sum", "mean"]:
        """How an answer's token log-likelihoods become one."""
        return "mean" if self.length_normalized else "sum"

    def weights(self, sampled: Sampled, log_likelihood: Tensor) -> Tensor:
        """Weigh the samples of each query.

        Args:
            sampled: S lists for each of B queries.
            log_likelihood: (B, S) of the answer given each list.

        Returns:
            (B, S), 0 in the rows of queries that are left out: those without any finite
            log-likelihood, and those below `min_log_likelihood`.
        """
        useful = log_likelihood
        if self.duplicates != "keep":
            first = first_occurrences(sampled.positions)  # (B, S)
            useful = log_likelihood.masked_fill(~first, -torch.inf)
        if self.kind == "self_normalized":
            prior, proposal = self._ratio(sampled)
            weights = importance_weights(
                useful, log_prior=prior, log_proposal=proposal, temperature=self.temperature
            )
        elif self.kind == "raw":
            weights = raw_weights(useful)
        elif self.kind == "uniform":
            weights = uniform_weights(useful)
        else:
            weights = hard_max_weights(useful)
        finite = torch.where(log_likelihood.isnan(), -torch.inf, log_likelihood)
        if self.min_log_likelihood is not None:
            hopeless = finite.amax(dim=-1, keepdim=True) < self.min_log_likelihood  # (B, 1)
            weights = weights.masked_fill(hopeless, 0.0)
        if self.query_weight == "marginal":
            weights = weights * log_mean_exp(log_likelihood).exp()[:, None]
        return weights

    def _ratio(self, sampled: Sampled) -> tuple[Tensor | None, Tensor | None]:
        """Return the log-probabilities of prior and proposal that the weights need."""
        if self.duplicates == "merge":
            return sampled.log_prob, None
        if self.duplicates == "released" or not self.proposal_correction:
            return None, None
        return sampled.log_prob, sampled.log_proposal


def merge_equal(positions: Tensor, weights: Tensor) -> Tensor:
    """Move the weights of equal lists to the first of them: a loss then needs each list once.

    Args:
        positions: (B, S, K).
        weights: (B, S).

    Returns:
        (B, S), with the same sum over equal lists.
    """
    equal = (positions[:, :, None] == positions[:, None]).all(dim=-1)  # (B, S, S)
    summed = (equal.to(weights) * weights[:, None]).sum(dim=-1)  # (B, S)
    return summed.masked_fill(~first_occurrences(positions), 0.0)


def figures(sampled: Sampled, log_likelihood: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Return what tells how an estimate went, for each query.

    Args:
        sampled: S lists for each of B queries.
        log_likelihood: (B, S).
        weights: (B, S).

    Returns:
        tensors (B,): `ess`, the effective number of samples 1 / Σ w²; `weight_entropy` in nats;
        `log_marginal`, the estimate of log p(y|x); `distinct`, the share of distinct lists;
        `selector_entropy`, the mean of -log p(z|x), in nats; `useless`, 1 if no list makes the
        answer as likely as 0.01; `likelihood_variance`, of p(y|x,z) over the lists; `mended`, the
        share of outputs that were no list; `left_out`, 1 if the query has no weight at all.
    """
    finite = torch.where(log_likelihood.isnan(), -torch.inf, log_likelihood)
    share = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-30)
    ratio = sampled.log_prob - sampled.log_proposal
    return {
        "ess": effective_sample_size(weights),
        "weight_entropy": torch.special.entr(share).sum(dim=-1),
        "log_marginal": log_mean_exp(finite + ratio),
        "distinct": first_occurrences(sampled.positions).float().mean(dim=-1),
        "selector_entropy": -sampled.log_prob.mean(dim=-1),
        "useless": (finite.amax(dim=-1) < USELESS).float(),
        "likelihood_variance": finite.exp().var(dim=-1, correction=0),
        "mended": 1 - sampled.valid.float().mean(dim=-1),
        "left_out": (weights.abs().sum(dim=-1) == 0).float(),
    }


def averages(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the means of per-query figures (Q,), and the smallest ESS.

    A query without any finite log-likelihood has no estimate of log p(y|x), and counts in none.
    """
    found = {}
    for name, values in rows.items():
        known = values[values.isfinite()]
        found[name] = float(known.mean()) if len(known) else math.nan
    found["ess_min"] = float(rows["ess"].min())
    return found

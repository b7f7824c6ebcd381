"""How much each sampled permutation of a query counts: DRO's importance weights and their kin."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
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
    leave_one_out_baseline,
    log_mean_exp,
    mean_baseline,
    raw_weights,
    uniform_weights,
)
from lightning_rag.retrieval.selector import Sampled
from lightning_rag.types import Instance, PermutationSamples

log = logging.getLogger(__name__)

FIGURE = "figures/"  # in front of the names of an estimate's figures in the bank
USELESS = math.log(0.01)  # below it no sampled list makes the answer likely (spec A8)


@dataclass
class WeightingConfig:
    """Weights of the S sampled permutations of a query (DRO, arXiv 2505.03075, section 4).

    Args:
        kind: "self_normalized", softmax of the answers' log-likelihoods (Eq. 19); "raw", the
            likelihoods themselves over S: REINFORCE with the likelihood as reward (Algorithm 1 as
            printed); "uniform", 1 / S: plain fine-tuning on one's own choices; "hard_max", 1 for
            the best sample.
        temperature: divides the log-weights before they are normalised.
        length_normalized: mean instead of sum of an answer's token log-likelihoods, as the released
            code has it; only with the sum are the weights ratios to the posterior (spec A1).
        duplicates: of equal samples, "keep" all, so that multiplicity stands for the prior (A5);
            "merge" keeps one and weights it by prior times likelihood; "released" keeps one without
            the prior, as the released code does.
        proposal_correction: where the samples come from another distribution than the selector's
            (`selector.proposal_temperature`, `selector.top_p`), weight by the ratio of both (A4);
            "uniform" and "hard_max" take the samples as they come.
        min_log_likelihood: leave a query out whose best sample is less likely, in nats; None = all
            are kept, as in the paper (A8).
        query_weight: "equal", or "marginal": times an estimate of p(y|x), the mean of the
            likelihoods.
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
        if self.kind == "self_normalized":
            return
        for name, value, neutral in (
            ("duplicates", self.duplicates, "keep"),
            ("temperature", self.temperature, 1.0),
            ("query_weight", self.query_weight, "equal"),
        ):
            if value != neutral:
                raise UserError(
                    f"model.weighting.{name} is {value!r}; legal with kind: {self.kind}: {neutral}"
                )

    @property
    def reduction(self) -> Literal["sum", "mean"]:
        """How an answer's token log-likelihoods become one."""
        return "mean" if self.length_normalized else "sum"

    @property
    def corrects(self) -> bool:
        """Whether the weights need to know what the samples were drawn from."""
        return self.proposal_correction and self.kind in ("self_normalized", "raw")

    def weights(self, sampled: Sampled, log_likelihood: Tensor) -> Tensor:
        """Weigh the samples of each query.

        Args:
            sampled: S lists for each of B queries.
            log_likelihood: (B, S) of the answer given each list.

        Returns:
            (B, S), 0 in the rows of queries that are left out: those without any finite
            log-likelihood, and those below `min_log_likelihood`.
        """
        ratio = sampled.log_prob - sampled.log_proposal  # (B, S)
        ratio = ratio if self.corrects else torch.zeros_like(ratio)
        if self.kind == "self_normalized":
            weights = self._self_normalized(sampled, log_likelihood, ratio)
        elif self.kind == "raw":
            weights = raw_weights(log_likelihood + ratio) / log_likelihood.shape[-1]
        elif self.kind == "uniform":
            weights = uniform_weights(log_likelihood)
        else:
            weights = hard_max_weights(log_likelihood)
        if self.query_weight == "marginal":
            weights = weights * log_mean_exp(log_likelihood + ratio).exp()[:, None]
        if self.min_log_likelihood is not None:
            hopeless = _best(log_likelihood) < self.min_log_likelihood  # (B,)
            weights = weights.masked_fill(hopeless[:, None], 0.0)
        return weights

    def _self_normalized(self, sampled: Sampled, log_likelihood: Tensor, ratio: Tensor) -> Tensor:
        """Return the softmax over the samples, or over the distinct ones."""
        if self.duplicates == "keep":
            log_likelihood = log_likelihood + ratio
        else:
            repeated = ~first_occurrences(sampled.positions)  # (B, S)
            log_likelihood = log_likelihood.masked_fill(repeated, -torch.inf)
        prior = sampled.log_prob if self.duplicates == "merge" else None
        return importance_weights(log_likelihood, log_prior=prior, temperature=self.temperature)


def selector_baseline(kind: str, weights: Tensor) -> Tensor:
    """Return what may be taken from the weights in the selector's loss, on-policy.

    Args:
        kind: of the weights. Self-normalised ones have the mean, 1 / S (spec A18); raw ones the
            mean of the query's other samples, with which their expected gradient stays.
        weights: (B, S).

    Returns:
        (B, S).
    """
    return mean_baseline(weights) if kind == "self_normalized" else leave_one_out_baseline(weights)


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


def figures(samples: PermutationSamples) -> dict[str, Tensor]:
    """Return what tells how an estimate went, for each query.

    Likelihoods are those that the weights are made of: of whole answers, or with
    `length_normalized` of their tokens, in the geometric mean.

    Args:
        samples: S lists for each of B queries.

    Returns:
        tensors (B,): `ess`, the effective number of samples (NaN for a query without weight);
        `weight_entropy` in nats; `log_marginal`, the estimate of log p(y|x); `distinct`, the share
        of distinct lists; `selector_entropy`, the mean of -log p(z|x) over the samples, in nats;
        `useless`, 1 if no list makes the answer as likely as 0.01; `likelihood_variance`, of
        p(y|x,z) over the lists; `mended`, the share of outputs that were no list; `left_out`, 1 if
        the query has no weight at all.
    """
    weights = samples.weights
    finite = torch.where(samples.log_likelihood.isnan(), -torch.inf, samples.log_likelihood)
    left_out = (weights == 0).all(dim=-1)  # (B,)
    share = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return {
        "ess": effective_sample_size(weights).masked_fill(left_out, torch.nan),
        "weight_entropy": torch.special.entr(share).sum(dim=-1).masked_fill(left_out, torch.nan),
        "log_marginal": log_mean_exp(finite + samples.log_prob - samples.log_proposal),
        "distinct": first_occurrences(samples.positions).float().mean(dim=-1),
        "selector_entropy": -samples.log_prob.mean(dim=-1),
        "useless": (_best(finite) < USELESS).float(),
        "likelihood_variance": finite.exp().var(dim=-1, correction=0),
        "mended": 1 - samples.valid.float().mean(dim=-1),
        "left_out": left_out.float(),
    }


def summary(rows: Mapping[str, Tensor], train: Sequence[Instance]) -> dict[str, float]:
    """Average the figures of an estimate, and name the queries that it left out.

    Args:
        rows: the bank's tensors (Q, …), figures among them.
        train: the training queries.

    Returns:
        As `averages`.
    """
    start = len(FIGURE)
    named = {name[start:]: values for name, values in rows.items() if name.startswith(FIGURE)}
    left_out = named["left_out"].nonzero().flatten().tolist()
    if left_out:
        ids = ", ".join(train[row].id for row in left_out[:5])
        log.warning(
            "%d of %d queries are left out of this iteration, because none of their lists has "
            "a weight: log-likelihoods that are not finite, below "
            "weighting.min_log_likelihood, or too small for kind: raw (%s%s)",
            *(len(left_out), len(train), ids, ", …" if len(left_out) > 5 else ""),
        )
    return averages(named)


def averages(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the means of per-query figures (Q,) over the queries that have them; the least ESS.

    A query without any finite log-likelihood has no estimate of log p(y|x), one without weight no
    effective number of samples.
    """
    found = {}
    for name, values in rows.items():
        known = values[values.isfinite()]
        found[name] = float(known.mean()) if len(known) else math.nan
    known = rows["ess"][rows["ess"].isfinite()]
    found["ess_min"] = float(known.min()) if len(known) else math.nan
    return found


def _best(log_likelihood: Tensor) -> Tensor:
    """Return the largest log-likelihood (B,) of (B, S), NaN counting as -inf."""
    return torch.where(log_likelihood.isnan(), -torch.inf, log_likelihood).amax(dim=-1)

"""Ordered lists of passages: their probabilities, their sampling, and DRO's importance weights.

Equation numbers are those of DRO (Shi et al., arXiv 2505.03075). x is the query, y its answer,
z = (z_1 .. z_K) an ordered list of different candidates, d_z their passages. z_1 .. z_S are lists
drawn independently from a proposal q(z|x), and l_i = log p(y|x, d_{z_i}) in nats: the sum over the
tokens of the answer, as the paper has it. The released code takes their mean, which is the same as
a temperature of |y|.

    p(z|x) = prod_t exp(s_{z_t}) / sum_{n not in z_<t} exp(s_n)     Plackett-Luce, for Eq. 1
    w_i    = softmax_i(l_i + log p(z_i|x) - log q(z_i|x))           Eqs. 6, 7 and 19

With q = p, the current selector, prior and proposal cancel: w = softmax(l), Eq. 19 as printed.

Lists that were drawn several times can be treated in three ways:

    importance_weights(l)                                      each draw counts: what Eq. 19 says
    importance_weights(l_first, log_prior=log_p)               each list once, weighted p(z|x) e^l
    importance_weights(l_first)                                each list once, as released: the
                                                               prior is lost, however many draws
    where l_first = l.masked_fill(~first_occurrences(positions), -inf)

Weights carry no gradient: they are the estimate, and the loss that they weigh is a likelihood
(Eqs. 10 and 11).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def plackett_luce_log_prob(scores: Tensor, positions: Tensor) -> Tensor:
    """Log-probability of ordered lists without replacement, in nats.

    The factorisation of DRO's Eq. 1 with logits that do not depend on what was chosen before:
    log p(z) = sum_t (s_{z_t} - logsumexp of the scores not yet taken). The sum over the remaining
    is taken anew at every step, so that no digits are lost where one candidate has nearly all.

    Args:
        scores: (..., N). A candidate of score -inf may not be had: a list with it has
            log-probability -inf, without a gradient, and elsewhere it counts for nothing. A score
            of NaN gives NaN.
        positions: (..., K) integers, best first. -1 is a place where nothing was chosen; it
            counts 0 and takes nothing away from the places behind it.

    Returns:
        (...) float32 (float64 for float64 scores). The leading dimensions of scores and positions
        broadcast: (B, 1, N) with (B, S, K) gives (B, S).

    Raises:
        ValueError: shapes that do not fit, positions that are no integers or out of range, or a
            candidate that is twice in a list.

    Example:
        >>> scores = torch.tensor([0.0, 0.5, 1.0])
        >>> plackett_luce_log_prob(scores, torch.tensor([[2, 1], [0, 1]])).exp()
        tensor([0.3153, 0.0703])
    """
    leading = _leading(scores, positions)
    width = scores.shape[-1]
    chosen = positions.unsqueeze(-1) == torch.arange(width, device=positions.device)  # (..., K, N)
    _check_positions(positions, chosen, width)
    order = chosen.cumsum(-2)  # how often each candidate was had, up to and with this place
    left = _wide(scores).unsqueeze(-2).masked_fill(order > chosen, -torch.inf)
    left = left.expand(*leading, -1, -1)  # (..., K, N) without what earlier places took
    index = positions.long().clamp(min=0).expand(*leading, -1).unsqueeze(-1)
    own = left.gather(-1, index).squeeze(-1)  # (..., K)
    nothing = positions < 0
    impossible = ~nothing & (own == -torch.inf)
    # Such places get their value at the end. Until then zeros stand for them, because -inf less
    # -inf would be NaN in the backward pass.
    skipped = nothing | impossible
    total = left.masked_fill(skipped.unsqueeze(-1), 0).logsumexp(-1)
    steps = (own.masked_fill(skipped, 0) - total).masked_fill(nothing, 0)
    return steps.masked_fill(impossible, -torch.inf).sum(-1)


def sample_plackett_luce(
    scores: Tensor, k: int, num_samples: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw ordered lists without replacement, independently of each other.

    Gumbel top-k: the k largest of s + g, in order, with independent standard Gumbel noise g, are
    distributed as Plackett-Luce says (Kool et al., arXiv 1903.06059). The noise is float64,
    because in float32 it is cut off at about 17, which is less than scores can differ.

    Args:
        scores: (..., N); -inf is a candidate that may not be had.
        k: length of the lists, at least 1.
        num_samples: S, number of lists, at least 1.
        generator: source of the noise, on the device of the scores; by default torch's own.

    Returns:
        (..., S, k) long, best first, without a gradient. Where fewer than k candidates may be had,
        -1 stands in the places that are left.

    Raises:
        ValueError: no candidates, k or num_samples below 1, or a score that is NaN or +inf.

    Example:
        >>> sample_plackett_luce(torch.tensor([0.0, -torch.inf, 99.0]), 3, 1)
        tensor([[ 2,  0, -1]])
    """
    if scores.dim() == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores must be (..., N) with N >= 1, got {tuple(scores.shape)}")
    if k < 1 or num_samples < 1:
        raise ValueError(f"k and num_samples must be at least 1, got {k} and {num_samples}")
    given = scores.detach().double()
    if bool((given.isnan() | given.isposinf()).any()):
        raise ValueError("scores must be finite or -inf, got NaN or +inf")
    width = given.shape[-1]
    noise = given.new_empty(*given.shape[:-1], num_samples, width)
    noise.exponential_(generator=generator)  # -log of an exponential variable is Gumbel
    noise.clamp_(min=torch.finfo(noise.dtype).tiny)
    keys = given.unsqueeze(-2) - noise.log()  # (..., S, N)
    values, positions = keys.topk(min(k, width), dim=-1)
    positions = positions.masked_fill(values == -torch.inf, -1)
    return torch.nn.functional.pad(positions, (0, k - positions.shape[-1]), value=-1)


def importance_weights(
    log_likelihood: Tensor,
    *,
    log_prior: Tensor | None = None,
    log_proposal: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Self-normalised importance weights of S samples of each query (DRO, Eqs. 6, 7 and 19).

    w_i = softmax_i((l_i + log p(z_i|x) - log q(z_i|x)) / T). Equal l give 1 / S each, and adding a
    constant to l changes nothing: whether a query's lists are all good or all useless does not
    show. With S = 1 the weight is 1 whatever l is.

    Args:
        log_likelihood: (..., S) l, log p(y|x, d_z) of each sample.
        log_prior: (..., S) log p(z|x) under the selector; needed unless it was the proposal.
        log_proposal: (..., S) log q(z|x) under what the samples were drawn from.
        temperature: T; 1 gives the posterior ratio, |y| what the released code does.

    Returns:
        (..., S), float32 at least, no gradient. Rows sum to 1. A sample for which any of the three
        is not finite has weight 0; a row without any other is all 0: that query is left out.

    Raises:
        ValueError: shapes that differ, no samples, or a temperature that is not positive and
            finite.

    Example:
        >>> importance_weights(torch.tensor([-2.0, -3.0, -3.0, float("nan")]))
        tensor([0.5761, 0.2119, 0.2119, 0.0000])
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    logits = _samples(log_likelihood, "log_likelihood").detach()
    for name, term, sign in (("log_prior", log_prior, 1), ("log_proposal", log_proposal, -1)):
        if term is None:
            continue
        if term.shape != log_likelihood.shape:
            raise ValueError(
                f"{name} must have the shape of log_likelihood, {tuple(log_likelihood.shape)}, "
                f"got {tuple(term.shape)}"
            )
        logits = logits + sign * _wide(term).detach()
    usable = logits.isfinite()
    weights = (logits / temperature).masked_fill(~usable, -torch.inf).softmax(-1)
    return weights.masked_fill(~usable, 0)  # a row without any usable sample was NaN


def raw_weights(log_likelihood: Tensor) -> Tensor:
    """Weights e^l, not normalised: p(y|x, d_z) as a reward, REINFORCE (DRO, Eq. 14).

    Under the selector's own samples, the expectation of w grad log p(z|x) is the gradient of
    p(y|x), not of its logarithm: a query counts the less the harder it is.

    Args:
        log_likelihood: (..., S).

    Returns:
        (..., S), float32 at least, no gradient; 0 where log_likelihood is not finite.

    Raises:
        ValueError: no samples.
    """
    given = _samples(log_likelihood, "log_likelihood").detach()
    return given.exp().masked_fill(~given.isfinite(), 0)


def uniform_weights(log_likelihood: Tensor) -> Tensor:
    """Equal weights: plain likelihood training on lists that the selector chose itself.

    Args:
        log_likelihood: (..., S).

    Returns:
        (..., S), float32 at least, no gradient. Where log_likelihood is not finite the weight is
        0; rows sum to 1 over the others, if there are any.

    Raises:
        ValueError: no samples.
    """
    given = _samples(log_likelihood, "log_likelihood")
    usable = given.isfinite().to(given.dtype)
    return usable / usable.sum(-1, keepdim=True).clamp(min=1)


def hard_max_weights(log_likelihood: Tensor) -> Tensor:
    """All weight on the best sample: expert iteration on the best of S.

    Args:
        log_likelihood: (..., S).

    Returns:
        (..., S), float32 at least, no gradient: 1 at the largest finite entry, the first of equal
        ones; a row without a finite entry is all 0.

    Raises:
        ValueError: no samples.
    """
    given = _samples(log_likelihood, "log_likelihood").detach()
    usable = given.isfinite()
    best = given.masked_fill(~usable, -torch.inf).argmax(-1, keepdim=True)
    return torch.zeros_like(given).scatter(-1, best, 1).masked_fill(~usable, 0)


def effective_sample_size(weights: Tensor) -> Tensor:
    """How many equally weighted samples the weights are worth: (sum w)^2 / sum w^2.

    For weights that sum to 1 it is 1 / sum w^2, between 1 and S.

    Args:
        weights: (..., S), normalised or not.

    Returns:
        (...), float32 at least; 0 where all weights are 0.

    Raises:
        ValueError: no samples.

    Example:
        >>> effective_sample_size(torch.tensor([0.5, 0.5, 0.0]))
        tensor(2.)
    """
    given = _samples(weights, "weights")
    # Raw weights can be so small that their squares are 0.
    largest = given.abs().amax(-1, keepdim=True)
    scaled = given / largest.masked_fill(largest == 0, 1)
    squares = scaled.square().sum(-1)
    return scaled.sum(-1).square() / squares.masked_fill(squares == 0, 1)


def log_mean_exp(log_likelihood: Tensor) -> Tensor:
    """Estimate of log p(y|x) (DRO, Eq. 2) from samples of p(z|x): log of the mean of e^l.

    Too small in expectation (Jensen). Its gradient is sum_i w_i grad l_i with the self-normalised
    weights w: minus that of the generator's loss (Eq. 11).

    Args:
        log_likelihood: (..., S). Entries that are not finite count as -inf: a likelihood of 0.

    Returns:
        (...), float32 at least; -inf, without a gradient, where no entry is finite.

    Raises:
        ValueError: no samples.

    Example:
        >>> log_mean_exp(torch.tensor([-2.0, -3.0, -3.0, -10.0]))
        tensor(-2.8347)
    """
    given = _samples(log_likelihood, "log_likelihood")
    usable = given.isfinite()
    none = ~usable.any(-1)
    # Zeros stand for rows that have nothing: NaN would come up in their backward pass, and though
    # it is masked again, torch's anomaly detection stops there.
    rows = given.masked_fill(~usable, -torch.inf).masked_fill(none.unsqueeze(-1), 0)
    return (rows.logsumexp(-1) - math.log(given.shape[-1])).masked_fill(none, -torch.inf)


def first_occurrences(positions: Tensor) -> Tensor:
    """Which lists are not a repetition of an earlier one of the same query.

    Args:
        positions: (..., S, K); two lists are equal if they agree in every place.

    Returns:
        (..., S) bool, True at the first of equal lists. Its mean is the share of distinct lists.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> first_occurrences(torch.tensor([[0, 1], [1, 0], [0, 1]]))
        tensor([ True,  True, False])
    """
    if positions.dim() < 2:
        raise ValueError(f"positions must be (..., S, K), got {tuple(positions.shape)}")
    equal = (positions.unsqueeze(-2) == positions.unsqueeze(-3)).all(-1)  # (..., S, S)
    return ~equal.tril(diagonal=-1).any(-1)


def mean_baseline(values: Tensor) -> Tensor:
    """Mean over the samples of a query, 1 / S for self-normalised weights.

    Subtracted from those weights, it leaves the expected gradient of samples from the current
    selector as it is, and lowers its variance. It contains the sample's own value: subtracted from
    independent rewards, it shrinks the expected gradient to (S - 1) / S of itself.

    Args:
        values: (..., S) finite.

    Returns:
        (..., S), the same number along each row; float32 at least.

    Raises:
        ValueError: no samples.
    """
    given = _samples(values, "values")
    return given.mean(-1, keepdim=True).expand_as(given)


def leave_one_out_baseline(values: Tensor) -> Tensor:
    """Mean over the other samples of the query, 0 where there is no other.

    For independent rewards such as `raw_weights`: what is subtracted does not depend on the sample,
    so that the expected gradient stays. For self-normalised weights it does depend: take
    `mean_baseline` there.

    Args:
        values: (..., S) finite.

    Returns:
        (..., S), float32 at least.

    Raises:
        ValueError: no samples.
    """
    given = _samples(values, "values")
    size = given.shape[-1]
    own = torch.eye(size, dtype=torch.bool, device=given.device)
    # Not the sum less the own value: beside one large value the others would lose their digits.
    others = given.unsqueeze(-2).masked_fill(own, 0).sum(-1)  # (..., S)
    return others / max(size - 1, 1)


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: half precision holds no small differences of log-probabilities."""
    return values if values.dtype == torch.float64 else values.float()


def _samples(values: Tensor, name: str) -> Tensor:
    """Values of S >= 1 samples in the last dimension, float32 at least."""
    if values.dim() == 0 or values.shape[-1] == 0:
        raise ValueError(f"{name} must be (..., S) with S >= 1, got {tuple(values.shape)}")
    return _wide(values)


def _leading(scores: Tensor, positions: Tensor) -> torch.Size:
    """The leading dimensions of scores (..., N) and positions (..., K) together."""
    shapes = f"{tuple(scores.shape)} and {tuple(positions.shape)}"
    if scores.dim() == 0 or scores.shape[-1] == 0 or positions.dim() == 0:
        raise ValueError(
            f"scores must be (..., N) with N >= 1 and positions (..., K), got {shapes}"
        )
    if positions.is_floating_point() or positions.dtype == torch.bool:
        raise ValueError(f"positions must be integers, got {positions.dtype}")
    try:
        leading: torch.Size = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            scores.shape[:-1], positions.shape[:-1]
        )
    except RuntimeError:
        raise ValueError(
            f"the leading dimensions of scores and positions do not broadcast: {shapes}"
        ) from None
    return leading


def _check_positions(positions: Tensor, chosen: Tensor, width: int) -> None:
    """Every position in range, none twice in a list; chosen is its (..., K, N) one-hot form."""
    outside = (positions < -1) | (positions >= width)
    if bool(outside.any()):
        raise ValueError(
            f"positions must lie between 0 and {width - 1} (or be -1 for nothing), got "
            f"{positions[outside][0].item()}"
        )
    repeated = (chosen.sum(-2) > 1).any(-1)
    if bool(repeated.any()):
        raise ValueError(
            f"a candidate must not be twice in a list, got {positions[repeated][0].tolist()}"
        )

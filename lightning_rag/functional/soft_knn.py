"""Soft k-nearest neighbours: k weight rows over N candidates in place of k chosen ones.

Each of k rounds is a softmax over the candidates; what a round has taken is made less likely in
the next by adding log(1 - w), w the round's weights. Two variants, s the scores and t > 0 the
temperature:

    "n3"     a^1 = s / t,  w^j = softmax(a^j),      a^{j+1} = a^j + log(1 - w^j)
             Plötz & Roth, "Neural Nearest Neighbors Networks", NeurIPS 2018, section 3
    "etrag"  s^1 = s,      w^j = softmax(s^j / t),  s^{j+1} = s^j + log(1 - w^j)
             ETRAG (arXiv 2406.03790), as its authors released it: each round divides by t again

At t = 1 they are the same. As t falls they are not: "etrag" tends to hard neighbours, one-hot rows
in order of the scores. "n3" does not: w^1 tends to the best candidate, but w^2, w^3, ... tend to
(1/2, 1/2) on the two best, because what is left of the best, 1 - w, is as much as all others
together. (One-hot rows seen with "n3" at low temperatures are an artefact of 1 - w rounding to 0.)
In between, a round of "etrag" can skip a candidate: two near-equal best ones share a round's
weight, and both are then out of the next.

log(1 - w_i) is the log-sum-exp over the others less the log-sum-exp over all, so that a weight that
rounds to 1 gives neither NaN nor infinity, in the weights or the gradients. (The true gradient can
grow by 1 / t per round with "etrag" where k is larger than N: with t = 1e-5 and ten rounds over two
candidates it leaves the range of float32. At t = 0.005 it does not.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

# Rows are worked off in pieces of this many numbers per thread, which stay in a processor's cache.
_CPU_PIECE = 2**15
_OTHER_PIECE = 2**26
# Above this log(1 - w) of the best candidate, the others' weights hold all digits of their ratios;
# below it some may have underflowed, and the backward pass works from the logits instead.
_SATURATED = -30.0
# As in torch.nn.functional.normalize: a shorter vector is divided by this.
_SMALLEST_NORM = 1e-12


def soft_knn_weights(
    scores: Tensor,
    k: int,
    temperature: float | Tensor = 1.0,
    *,
    mask: Tensor | None = None,
    variant: Literal["n3", "etrag"] = "n3",
) -> Tensor:
    """Weights of k soft neighbours (see the module for the equations and their limits).

    Each row sums to 1. Exclusion is soft: a candidate has weight in several rows, and k may be
    larger than the number of candidates, which are then taken again. A single candidate that may
    be chosen has all the weight of every row, without a gradient. A query none of whose candidates
    may be chosen gets rows of zeros, and a gradient of zeros.

    Time and memory are O(k N) per query. Kept for the backward pass are the weights themselves,
    the scores and two numbers per round. Gradients of gradients are not available.

    Args:
        scores: (..., N), higher is closer. A score of -inf is a candidate that may not be chosen.
        k: number of neighbours, at least 1.
        temperature: a number, or a tensor that broadcasts to (..., 1), such as a learned scalar or
            one temperature per query.
        mask: bool, broadcasts to (..., N); True where the candidate may be chosen. Other candidates
            have a weight and a gradient of exactly 0.
        variant: "n3" or "etrag".

    Returns:
        (..., k, N) weights, float32 (float64 for float64 scores).

    Raises:
        ValueError: k below 1, no candidates, a temperature that is not positive and finite, a mask
            that is not bool, shapes that do not fit, or an unknown variant.

    Example:
        >>> soft_knn_weights(torch.tensor([0.0, -1.0, -2.0]), 2, 0.1, variant="etrag").round()
        tensor([[1., 0., 0.],
                [0., 1., 0.]])
    """
    if variant not in ("n3", "etrag"):
        raise ValueError(f"variant must be 'n3' or 'etrag', got {variant!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if scores.dim() == 0 or scores.shape[-1] == 0:
        raise ValueError(f"scores must be (..., N) with N >= 1, got {tuple(scores.shape)}")
    # Half precision holds neither small weights nor small differences between scores.
    wide = scores if scores.dtype == torch.float64 else scores.float()
    if mask is not None:
        wide = wide.masked_fill(~_fitting_mask(mask, scores), -torch.inf)
    rows = wide.reshape(-1, wide.shape[-1])
    per_row = _temperature_per_row(temperature, wide)
    weights: Tensor = _SoftKnn.apply(rows, per_row, k, variant == "etrag")  # type: ignore[no-untyped-call]
    return weights.view(*scores.shape[:-1], k, scores.shape[-1])


def span_cosine_distance(queries: Tensor, instances: Tensor) -> Tensor:
    """Mean over the slots of 1 - cosine (ETRAG, arXiv 2406.03790); a slot compares with its like.

    A vector of zeros has distance 1 (norms are at least 1e-12), and then a very large gradient.

    Args:
        queries: (B, V, D).
        instances: (N, V, D) shared by all queries, or (B, N, V, D).

    Returns:
        (B, N), between 0 and 2; float32 (float64 for float64 vectors).

    Raises:
        ValueError: shapes that do not fit.
    """
    queries, instances = _fitting_spans(queries, instances)
    unit = torch.nn.functional.normalize(queries, dim=-1, eps=_SMALLEST_NORM)
    with torch.autocast(unit.device.type, enabled=False):
        if instances.dim() == 3:
            total: Tensor = _CosineSum.apply(unit, instances)  # type: ignore[no-untyped-call]
        else:
            others = torch.nn.functional.normalize(instances, dim=-1, eps=_SMALLEST_NORM)
            total = _inner_products(unit, others)
    return 1 - total / queries.shape[1]


def span_squared_distance(queries: Tensor, instances: Tensor) -> Tensor:
    """Mean over the slots of the squared Euclidean distance; a slot compares with its like.

    It is computed as |q|^2 + |x|^2 - 2 q x, so that very close vectors lose digits.

    Args:
        queries: (B, V, D).
        instances: (N, V, D) shared by all queries, or (B, N, V, D).

    Returns:
        (B, N), at least 0; float32 (float64 for float64 vectors).

    Raises:
        ValueError: shapes that do not fit.
    """
    queries, instances = _fitting_spans(queries, instances)
    squares = queries.square().sum(dim=(-2, -1))[:, None] + instances.square().sum(dim=(-2, -1))
    total = squares - 2 * _inner_products(queries, instances)
    return total.clamp(min=0) / queries.shape[1]


def soft_neighbours(weights: Tensor, vectors: Tensor) -> Tensor:
    """Weighted means of the candidates' vectors; the slots of a candidate share its weight.

    Args:
        weights: (B, k, N), as from `soft_knn_weights`.
        vectors: (N, V, D) shared by all queries, or (B, N, V, D).

    Returns:
        (B, k, V, D), float32 (float64 where weights or vectors are).

    Raises:
        ValueError: shapes that do not fit.
    """
    shared = vectors.dim() == 3
    if (
        weights.dim() != 3
        or vectors.dim() not in (3, 4)
        or vectors.shape[-3] != weights.shape[-1]
        or (not shared and vectors.shape[0] != weights.shape[0])
    ):
        raise ValueError(
            f"weights must be (B, k, N) and vectors (N, V, D) or (B, N, V, D), got "
            f"{tuple(weights.shape)} and {tuple(vectors.shape)}"
        )
    weights, vectors = _wide(weights, vectors)
    with torch.autocast(weights.device.type, enabled=False):
        mixed = weights @ vectors.flatten(-2)  # (B, k, V D)
    return mixed.view(*mixed.shape[:-1], *vectors.shape[-2:])


def _fitting_mask(mask: Tensor, scores: Tensor) -> Tensor:
    """The mask in the shape of the scores."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool (True = may be chosen), got {mask.dtype}")
    try:
        return mask.broadcast_to(scores.shape)
    except RuntimeError:
        raise ValueError(
            f"mask {tuple(mask.shape)} does not broadcast to the scores {tuple(scores.shape)}"
        ) from None


def _temperature_per_row(temperature: float | Tensor, scores: Tensor) -> Tensor:
    """(..., 1) temperatures, flattened to (rows, 1), in the dtype of the scores."""
    given = torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    shape = (*scores.shape[:-1], 1)
    try:
        spread = given.broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"temperature {tuple(given.shape)} does not broadcast to {shape}, one per query"
        ) from None
    # The smallest normal number and not 0: its reciprocal is still finite.
    legal = (given >= torch.finfo(given.dtype).tiny) & given.isfinite()
    if not bool(legal.all()):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    return spread.reshape(-1, 1)


def _wide(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes, float32 at least."""
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)


def _fitting_spans(queries: Tensor, instances: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and instances in one wide dtype, their shapes checked."""
    per_query = instances.dim() == 4
    if (
        queries.dim() != 3
        or instances.dim() not in (3, 4)
        or instances.shape[-2:] != queries.shape[-2:]
        or (per_query and instances.shape[0] != queries.shape[0])
    ):
        raise ValueError(
            f"queries must be (B, V, D) and instances (N, V, D) or (B, N, V, D), got "
            f"{tuple(queries.shape)} and {tuple(instances.shape)}"
        )
    return _wide(queries, instances)


def _inner_products(queries: Tensor, instances: Tensor) -> Tensor:
    """(B, N): sum over the slots of the inner products, one matrix product over V D."""
    flat, others = queries.flatten(-2), instances.flatten(-2)
    # Cosines of one encoder's vectors lie close together; bfloat16 would make them equal.
    with torch.autocast(flat.device.type, enabled=False):
        if others.dim() == 2:
            return flat @ others.T
        return (others @ flat.unsqueeze(-1)).squeeze(-1)


class _Context(FunctionCtx):
    """What the functions below keep between their two passes."""

    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    divide: bool


class _CosineSum(torch.autograd.Function):
    """Sum over the slots of the cosines of unit queries (B, V, D) and instances (N, V, D): (B, N).

    Instances may be a whole store: no normalised copy of them is made, nor three more of their size
    on the way back. With y = q x / n, n = |x|: dy/dx = (q - y x / n) / n, and q / n at a clamped n.
    """

    @staticmethod
    def forward(ctx: _Context, queries: Tensor, instances: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(instances, dim=-1).T  # (V, N)
        inverse = norms.clamp(min=_SMALLEST_NORM).reciprocal()
        total = queries.new_zeros(queries.shape[0], instances.shape[0])
        for v in range(queries.shape[1]):
            total.addcmul_(queries[:, v] @ instances[:, v].T, inverse[v])
        ctx.save_for_backward(queries, instances, inverse, norms >= _SMALLEST_NORM)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        queries, instances, inverse, free = ctx.saved_tensors
        grad_queries = torch.empty_like(queries)
        grad_instances = torch.empty_like(instances) if ctx.needs_input_grad[1] else None
        for v in range(queries.shape[1]):
            x, scaled = instances[:, v], upstream * inverse[v]
            grad_queries[:, v] = scaled @ x
            if grad_instances is not None:
                grad = scaled.T @ queries[:, v]  # (N, D)
                along = torch.linalg.vecdot(x, grad) * inverse[v].square() * free[v]
                grad_instances[:, v] = grad.addcmul_(x, along[:, None], value=-1)
        return grad_queries, grad_instances


class _SoftKnn(torch.autograd.Function):
    """The rounds of `soft_knn_weights` on (R, N) scores and (R, 1) temperatures.

    With a^{j+1} = a^j + l^j / d (d = 1 for "n3", t for "etrag"), l_i = log(1 - w_i), and h^{j+1}
    the gradient with respect to a^{j+1}, u^j that with respect to w^j, g = h^{j+1} / d:

        h^j_m = h^{j+1}_m + w_m (u_m - sum_i w_i u_i) + sum_i g_i dl_i / da_m
        sum_i g_i dl_i / da_m = sum_{i != m} g_i w_m / (1 - w_i) - w_m sum_i g_i
                              = w_m (sum_{i != m} q_i - g_m),  q_i = g_i w_i / (1 - w_i)

    Only the best candidate, b, can have w near 1. Its part, w_m q_b, is written g_b w_b p_m with
    p_m = w_m / (1 - w_b), the softmax over the candidates without b.
    """

    @staticmethod
    def forward(ctx: _Context, scores: Tensor, temperature: Tensor, k: int, divide: bool) -> Tensor:
        count, width = scores.shape
        weights = scores.new_empty(count, k, width)
        best = torch.zeros(count, k, 1, dtype=torch.long, device=scores.device)
        log_left = scores.new_zeros(count, k, 1)
        for part in _pieces(scores):
            t = temperature[part]
            _choose(
                _first_logits(scores[part], t),
                t if divide else None,
                weights[part],
                best[part],
                log_left[part],
            )
        ctx.save_for_backward(scores, temperature, weights, best, log_left)
        ctx.divide = divide
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scores, temperature, *kept = ctx.saved_tensors
        grad_scores = torch.empty_like(scores)
        grad_temperature = torch.empty_like(temperature) if ctx.needs_input_grad[1] else None
        for part in _pieces(scores):
            t = temperature[part]
            logits = _first_logits(scores[part], t)
            weights, best, log_left = (tensor[part] for tensor in kept)
            divisor = t if ctx.divide else None
            rest = None
            if bool((log_left < _SATURATED).any()):
                rest = _softmax_of_rest(logits, divisor, weights, best, log_left)
            grad, grad_divisor = _back(
                upstream[part], divisor, weights, best, log_left, rest, grad_temperature is not None
            )
            grad_scores[part] = grad / t
            if grad_temperature is not None:
                # A common shift of the logits changes no weight, so `logits` may be the shifted
                # ones. A weight of 0 at -inf has no gradient.
                moment = (grad * logits.masked_fill(logits == -torch.inf, 0)).sum(-1, keepdim=True)
                grad_temperature[part] = (grad_divisor - moment) / t
        return grad_scores, grad_temperature, None, None


def _pieces(scores: Tensor) -> Iterator[slice]:
    """Slices of the rows whose numbers fit the cache (on an accelerator: its memory)."""
    on_cpu = scores.device.type == "cpu"
    numbers = _CPU_PIECE * torch.get_num_threads() if on_cpu else _OTHER_PIECE
    step = max(1, numbers // scores.shape[1])
    for start in range(0, scores.shape[0], step):
        yield slice(start, start + step)


def _first_logits(scores: Tensor, temperature: Tensor) -> Tensor:
    """(s - max s) / t; the shift keeps the best finite at any temperature."""
    top = scores.amax(dim=-1, keepdim=True)
    return (scores - top.masked_fill(top == -torch.inf, 0)).div_(temperature)


def _choose(
    logits: Tensor,
    divisor: Tensor | None,
    weights: Tensor,
    best: Tensor,
    log_left: Tensor,
) -> None:
    """All rounds for some rows; consumes `logits` (r, N) and fills the three others.

    Per row and round: the weights, the index of the best candidate b, and log(1 - w_b). Where there
    is no other candidate that is put at 0, so that the only one stays.
    """
    rounds = weights.shape[1]
    change = torch.empty_like(logits)
    for j in range(rounds):
        w = weights[:, j]
        top, index = logits.max(dim=-1, keepdim=True)
        logits.scatter_(-1, index, -torch.inf)
        second = logits.amax(dim=-1, keepdim=True)
        alone = second == -torch.inf
        torch.sub(logits, second.masked_fill(alone, 0), out=w).exp_()
        # From here on relative to the best: its logit may be large, the differences count.
        gap = (second - top).masked_fill_(alone, -torch.inf)
        rest = gap + w.sum(dim=-1, keepdim=True).log()
        log_sum = torch.logaddexp(torch.zeros_like(rest), rest)
        w.mul_((gap - log_sum).exp_())
        w.scatter_(-1, index, log_sum.neg().exp_().masked_fill_(top == -torch.inf, 0))
        best[:, j] = index
        log_left[:, j] = (rest - log_sum).masked_fill_(alone, 0)
        if j + 1 < rounds:
            logits.scatter_(-1, index, top)
            logits.add_(_exclusion(w, index, log_left[:, j], divisor, change))


def _exclusion(
    w: Tensor, best: Tensor, log_left: Tensor, divisor: Tensor | None, out: Tensor | None = None
) -> Tensor:
    """(r, N): log(1 - w) / d, what a round adds to the logits. All w but the best's are <= 1/2."""
    change = torch.neg(w, out=out).log1p_().scatter_(-1, best, log_left)
    return change if divisor is None else change.div_(divisor)


def _softmax_of_rest(
    logits: Tensor,
    divisor: Tensor | None,
    weights: Tensor,
    best: Tensor,
    log_left: Tensor,
) -> Tensor:
    """(r, k - 1, N): p^j, each round's softmax without its best, from the replayed logits."""
    rounds = weights.shape[1] - 1
    rest = weights.new_empty(weights.shape[0], rounds, weights.shape[2])
    for j in range(rounds):
        others = logits.scatter(-1, best[:, j], -torch.inf)
        # A candidate that is alone is left without a softmax: 0 for NaN.
        rest[:, j] = others.softmax(dim=-1).masked_fill_(others == -torch.inf, 0)
        logits = logits + _exclusion(weights[:, j], best[:, j], log_left[:, j], divisor)
    return rest


def _back(
    upstream: Tensor,
    divisor: Tensor | None,
    weights: Tensor,
    best: Tensor,
    log_left: Tensor,
    rest: Tensor | None,
    for_divisor: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients with respect to the first logits (r, N), and divisor * that to d (r, 1)."""
    h = weights.new_zeros(weights.shape[0], weights.shape[2])
    moment = weights.new_zeros(weights.shape[0], 1)
    last = weights.shape[1] - 1
    for j in range(last, -1, -1):
        w, u, index = weights[:, j], upstream[:, j], best[:, j]
        # u less u_b, so that the best's part, small where w_b is near 1, is not a difference.
        inner = u - u.gather(-1, index)
        inner -= torch.mul(w, inner).sum(dim=-1, keepdim=True)
        if j == last:
            h.addcmul_(w, inner)
            continue
        g = h if divisor is None else h / divisor
        if for_divisor and divisor is not None:
            # g and l rather than h and l / d: the latter may overflow where h is 0.
            moment -= (g * _exclusion(w, index, log_left[:, j], None)).sum(-1, keepdim=True)
        left = (1 - w).scatter_(-1, index, log_left[:, j].exp())
        q = torch.mul(g, w).div_(left).scatter_(-1, index, 0.0)
        inner.add_(q.sum(dim=-1, keepdim=True)).sub_(q)
        of_best = g.gather(-1, index) * w.gather(-1, index)
        # h - w g; for "n3" as h (1 - w), which keeps the digits of 1 - w.
        h = h * left if divisor is None else h - w * g
        if rest is None:
            # p_m = w_m / (1 - w_b) for all but b itself, which has no part in this.
            without = inner.gather(-1, index)
            inner.add_(of_best * log_left[:, j].neg().exp_()).scatter_(-1, index, without)
        else:
            h.addcmul_(of_best, rest[:, j])
        h.addcmul_(w, inner)
    return h, moment

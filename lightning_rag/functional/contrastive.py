"""Contrastive losses: the one right passage of a query against the others.

q_i is query i of B, k_j passage j of B * P: rows iP .. iP + P - 1 are the passages of query i, the
first of them its positive, p_i = k_{iP}. At temperature t,

    L_i = -log(exp(q_i . p_i / t) / Z_i),   Z_i = sum of exp(score / t) over the blocks

    block   scores of row i       columns
    "qp"    q_i . k_j             B * P   own positive, own negatives, all passages of the others
    "pq"    p_i . q_j, j != i     B       the other queries, from the positive's side
    "qq"    q_i . q_j, j != i     B       the other queries
    "pp"    p_i . p_j, j != i     B       the other positives

"qp" alone is InfoNCE with negatives of the batch (van den Oord et al., arXiv 1807.03748), known as
the multiple negatives ranking loss. All four are what LLM-R (arXiv 2307.07164) and RUIE (arXiv
2409.11673) released; the order of the blocks does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Block = Literal["qp", "pq", "qq", "pp"]
BLOCKS: tuple[Block, ...] = ("qp", "pq", "qq", "pp")


def info_nce(
    queries: Tensor,
    passages: Tensor,
    *,
    temperature: float,
    blocks: Sequence[Block] = ("qp",),
    ignore: Tensor | None = None,
) -> Tensor:
    """Negative log-probability of each query's positive (see the module for the equation), in nats.

    The scores are computed in float32 at least, also under autocast: at RUIE's temperature of 0.01
    the rounding of half precision would be as large as what is learned from.

    Args:
        queries: (B, D) with B >= 1, as they are to be multiplied: the caller normalises.
        passages: (B * P, D) with P >= 1; row i * P is the positive of query i.
        temperature: t, positive.
        blocks: "qp", and those of "pq", "qq" and "pp" that are to add negatives.
        ignore: (B, B * P) bool, True where passage j is no true negative of query i, so that it is
            left out of the sum. In the other blocks query j and its positive stand together:
            `ignore[i, j * P]` leaves both out of row i. The own positive stays, whatever is said
            of it.

    Returns:
        (B,), float32 at least.

    Raises:
        ValueError: shapes that do not fit, a temperature that is not positive and finite, blocks
            that are unknown, repeated or without "qp", or a mask that is not bool.

    Example:
        >>> queries, passages = torch.eye(2), torch.eye(2)
        >>> info_nce(queries, passages, temperature=1.0)
        tensor([0.3133, 0.3133])
        >>> info_nce(queries, passages, temperature=1.0, blocks=["qp", "qq"])
        tensor([0.5514, 0.5514])
    """
    _check_blocks(temperature, blocks)
    queries, passages = _fitting(queries, passages)
    count, size = len(queries), len(passages) // len(queries)
    positive = torch.arange(count, device=queries.device) * size  # (B,) columns
    apart = torch.eye(count, dtype=torch.bool, device=queries.device)
    if ignore is not None:
        _check_ignore(ignore, count, len(passages))
        apart = apart | ignore[:, ::size]
        ignore = ignore.scatter(1, positive.unsqueeze(-1), False)
    with torch.autocast(queries.device.type, enabled=False):
        positives = passages[::size]  # (B, D)
        rows = {"q": queries / temperature, "p": positives / temperature}
        scores = rows["q"] @ passages.T  # (B, B * P)
        pieces = [scores if ignore is None else scores.masked_fill(ignore, -torch.inf)]
        for block in blocks:
            if block != "qp":
                others = queries if block[1] == "q" else positives
                pieces.append((rows[block[0]] @ others.T).masked_fill(apart, -torch.inf))
        return torch.nn.functional.cross_entropy(
            torch.cat(pieces, dim=-1), positive, reduction="none"
        )


def own_scores(queries: Tensor, passages: Tensor) -> Tensor:
    """Inner products of each query with its own passages: what distillation compares.

    Args:
        queries: (B, D) with B >= 1.
        passages: (B * P, D) with P >= 1; rows i * P .. i * P + P - 1 belong to query i.

    Returns:
        (B, P), float32 at least, also under autocast.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> own_scores(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[1.],
                [4.]])
    """
    queries, passages = _fitting(queries, passages)
    own = passages.view(len(queries), -1, passages.shape[-1])  # (B, P, D)
    with torch.autocast(queries.device.type, enabled=False):
        return (own @ queries.unsqueeze(-1)).squeeze(-1)


def listwise_cross_entropy(scores: Tensor, positive: int = 0) -> Tensor:
    """Negative log-probability of the positive in a softmax over a query's candidates, in nats.

    RUIE's loss of the reward model: L = -s_positive + logsumexp_c s_c.

    Args:
        scores: (B, C) with C >= 1; -inf is a candidate that is not there.
        positive: the positive's column, the same for all queries.

    Returns:
        (B,), float32 at least.

    Raises:
        ValueError: scores that are not (B, C), or a column that they do not have.

    Example:
        >>> listwise_cross_entropy(torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, -1.0, 0.5]]))
        tensor([0.4402, 3.1399])
    """
    if scores.dim() != 2 or not 0 <= positive < scores.shape[1]:
        raise ValueError(
            f"scores must be (B, C) and positive one of its columns, got {tuple(scores.shape)} "
            f"and {positive}"
        )
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    column = torch.full((len(wide),), positive, device=wide.device)
    return torch.nn.functional.cross_entropy(wide, column, reduction="none")


def gather(vectors: Tensor) -> Tensor:
    """Put the rows of all processes one below the other, with gradient, in the order of their rank.

    Every process then has the whole batch, and computes its loss as one process would. Backwards,
    the gradients that all processes have for a row are summed and go to the process that it came
    from; averaged over the processes, as DistributedDataParallel does with those of the weights,
    they are the gradients of the loss of the whole batch.

    Processes may have different numbers of rows, 0 included. All of them have to take part, forward
    and backward: where one has vectors with a gradient, all must.

    Args:
        vectors: (n, ...), one row or more per query; of any type. Other dimensions are the same in
            all processes.

    Returns:
        (sum of n, ...), the own rows in their place. Without torch.distributed, or with a single
        process, `vectors` itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return vectors
    gathered: Tensor = _Gather.apply(vectors)  # type: ignore[no-untyped-call]
    return gathered


class _Context(FunctionCtx):
    """What the function below keeps between its two passes."""

    place: slice


class _Gather(torch.autograd.Function):
    """All rows forward; backward the sum of all processes' gradients for the own rows."""

    @staticmethod
    def forward(ctx: _Context, vectors: Tensor) -> Tensor:
        world = dist.get_world_size()
        own = torch.tensor(len(vectors), device=vectors.device)
        counts = [torch.empty_like(own) for _ in range(world)]
        dist.all_gather(counts, own)
        sizes = [int(count) for count in counts]
        # Collectives want tensors of one shape.
        padded = vectors.new_zeros(max(sizes), *vectors.shape[1:])
        padded[: len(vectors)] = vectors
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        start = sum(sizes[: dist.get_rank()])
        ctx.place = slice(start, start + len(vectors))
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.place]


def _fitting(queries: Tensor, passages: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and passages in the wider of their types, their shapes checked."""
    fits = queries.dim() == passages.dim() == 2 and queries.shape[1] == passages.shape[1]
    if not fits or not len(queries) or not len(passages) or len(passages) % len(queries):
        raise ValueError(
            "queries must be (B, D) and passages (B * P, D) with B and P at least 1, got "
            f"{tuple(queries.shape)} and {tuple(passages.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(queries.dtype, passages.dtype), torch.float32)
    return queries.to(dtype), passages.to(dtype)


def _check_blocks(temperature: float, blocks: Sequence[Block]) -> None:
    """A temperature above 0, and known blocks, each once, with that of the positive."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    if "qp" not in blocks or not set(blocks) <= set(BLOCKS) or len(set(blocks)) < len(blocks):
        raise ValueError(
            f"blocks must be 'qp' and others of {', '.join(map(repr, BLOCKS[1:]))}, each once, "
            f"got {list(blocks)}"
        )


def _check_ignore(ignore: Tensor, count: int, columns: int) -> None:
    """A bool for every query and passage."""
    if ignore.dtype != torch.bool or ignore.shape != (count, columns):
        raise ValueError(
            f"ignore must be bool (B, B * P), here {(count, columns)}, got {ignore.dtype} "
            f"{tuple(ignore.shape)}"
        )

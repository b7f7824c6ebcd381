"""What several processes find out together: means over the queries of all, texts of all.

Each function has to be called by all processes, in the same order; with one process, or without
torch.distributed, it does nothing but what its name says. `contrastive.gather` is another of them,
for rows with a gradient.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """Return how many processes there are; 1 without torch.distributed."""
    return dist.get_world_size() if _is_shared() else 1


def summed(values: Tensor) -> Tensor:
    """Return the sum over all processes, without gradient.

    Args:
        values: (…), the same shape in all processes.
    """
    values = values.detach().clone()
    if process_count() > 1:
        dist.all_reduce(values)
    return values


def shared_mean(values: Tensor, *, counts: bool = True) -> Tensor:
    """Return the mean over the queries of all processes, in a form whose gradients may be averaged.

    See `shared_ratio`, which is given sums.

    Args:
        values: (n_r,) with or without gradient; 0 values are allowed.
        counts: False = this process only takes part; its values count as none.

    Returns:
        (); 0 where no process has a value, with a gradient of 0 where the values have one.

    Example:
        >>> shared_mean(torch.tensor([1.0, 2.0, 6.0]))
        tensor(3.)
    """
    if process_count() == 1 and counts and len(values):
        return values.mean()
    return shared_ratio(values.sum(), len(values) if counts else 0)


def shared_ratio(total: Tensor, number: int) -> Tensor:
    """Return the sum of all processes by their number of queries, for gradients to be averaged.

    DistributedDataParallel averages gradients over W processes, whatever number of queries each
    has. With n_r of all n queries in process r, its result is W / n times its sum, so that the mean
    of the results over the processes is the mean over all queries, and the mean of their gradients
    its gradient: process r counts by its share of the queries, not as one of W.

    Args:
        total: () sum over the queries of this process.
        number: n_r, how many they are; 0 = this process only takes part, and `total` does not
            count.

    Returns:
        (); 0 if n is 0, with a gradient of 0 where `total` has one.

    Example:
        >>> shared_ratio(torch.tensor(9.0), 3)
        tensor(3.)
    """
    if process_count() == 1:
        return total / number if number else total * 0
    of_all = int(summed(torch.tensor(number, device=total.device)))
    return total * (process_count() / of_all if number else 0.0)


def query_mean(values: Tensor, *, counts: bool = True) -> tuple[Tensor, int]:
    """Return the mean over the queries of all processes, and their number; the same in all of them.

    Args:
        values: (n_r,); NaN = a query that does not count.
        counts: False = this process only takes part; its values count as none.

    Returns:
        () without gradient, 0 if no query counts; and how many do.
    """
    known = values.detach()[~values.isnan()] if counts else values.detach()[:0]
    if process_count() == 1:
        return (known.mean() if len(known) else known.sum()), len(known)
    found = summed(torch.stack([known.double().sum(), known.new_tensor(len(known)).double()]))
    return (found[0] / found[1].clamp(min=1)).to(values.dtype), int(found[1])


def from_first(values: Tensor) -> Tensor:
    """Return the values of process zero; those of the others, of the same shape, are forgotten.

    Args:
        values: (…), of any type, without gradient.
    """
    if process_count() > 1:
        values = values.detach().clone()
        dist.broadcast(values, src=0)
    return values


def texts_of_all(text: str, device: torch.device) -> list[str]:
    """Return the texts of all processes, in the order of their ranks.

    Args:
        text: this process's, of any length.
        device: where the processes exchange tensors: the CPU for gloo, a GPU for NCCL.
    """
    if process_count() == 1:
        return [text]
    data = torch.frombuffer(
        bytearray(text.encode("utf-8", "surrogatepass") + b"\n"), dtype=torch.uint8
    )
    size = torch.tensor(len(data), device=device)
    sizes = [torch.empty_like(size) for _ in range(process_count())]
    dist.all_gather(sizes, size)
    longest = max(int(one) for one in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: len(data)] = data.to(device)
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [
        bytes(part[: int(one) - 1].cpu().numpy()).decode("utf-8", "surrogatepass")
        for part, one in zip(parts, sizes, strict=True)
    ]


def wait_for_all() -> None:
    """Go on when all processes are here."""
    if process_count() > 1:
        dist.barrier()


def own_slice(size: int, rank: int, world: int) -> slice:
    """Return which of `size` queries in a row are this process's: equal shares, as far as can be.

    Args:
        size: queries of a batch that is shared out.
        rank: the process, 0 to world - 1.
        world: the number of processes.

    Example:
        >>> [own_slice(5, rank, 2) for rank in range(2)]
        [slice(0, 2, None), slice(2, 5, None)]
    """
    return slice(rank * size // world, (rank + 1) * size // world)


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized()

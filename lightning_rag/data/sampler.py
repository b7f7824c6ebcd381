"""The order of the training queries: a function of (seed, epoch), so a resumed run repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """A shuffle that depends on the seed and the epoch alone.

    With `lengths`, queries of similar length are put into the same batch (they are sorted inside
    windows of `window` batches, and the batches shuffled again), which saves padding.

    Args:
        size: number of queries.
        seed: seed of the run.
        batch_size: size of the batches that will be cut from this order.
        lengths: a length of each query, or None for a plain shuffle.
        window: number of batches that are sorted together.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int,
        batch_size: int,
        lengths: Sequence[int] | None = None,
        window: int = 8,
    ) -> None:
        self.size = size
        self.seed = seed
        self.batch_size = batch_size
        self.lengths = lengths
        self.window = window
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next; Lightning calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        # A generator: the order is drawn when its first row is asked for. A resumed run opens its
        # loader before Lightning has told the epoch.
        yield from self._order()

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()
        if self.lengths is None:
            return order
        lengths = self.lengths
        stride = self.batch_size * self.window
        full, rest = [], []
        for start in range(0, self.size, stride):
            part = sorted(order[start : start + stride], key=lambda row: lengths[row])
            batches = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            full += [batch for batch in batches if len(batch) == self.batch_size]
            rest += [batch for batch in batches if len(batch) < self.batch_size]
        shuffled = torch.randperm(len(full), generator=generator).tolist()
        # The one short batch stays last, because the loader cuts batches by counting.
        batches = [full[index] for index in shuffled] + rest
        return [row for batch in batches for row in batch]

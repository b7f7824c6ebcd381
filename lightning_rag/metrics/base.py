"""What the metric classes share: predictions beside gold answers, figures from queries' counts."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_rag.metrics.counts import MEAN, Aggregation, Count, aggregate
from lightning_rag.types import Predictions, RagBatch


def answered(predictions: Predictions, batch: RagBatch) -> list[tuple[str, tuple[str, ...]]]:
    """Return each prediction with the gold answers of its instance, B pairs.

    Raises:
        ValueError: the predictions do not fit the batch, or an instance has no gold answer.
    """
    if len(predictions.texts) != len(batch.instances):
        raise ValueError(
            f"predictions.texts: expected {len(batch.instances)}, one for each query of the batch, "
            f"got {len(predictions.texts)}"
        )
    for instance in batch.instances:
        if not instance.answers:
            raise ValueError(f"instance {instance.id!r} has no answer to compare a prediction with")
    return [
        (text, instance.answers)
        for text, instance in zip(predictions.texts, batch.instances, strict=True)
    ]


class CountedMetric(Metric):
    """A metric whose figures are made of what single queries add to them (`metrics.counts`).

    Args:
        names: the figures that are there without any query too.
    """

    full_state_update = False
    higher_is_better: bool | None = True
    is_differentiable = False

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        # What batches added, as lines of JSON, because states are tensors: which figures and
        # classes there are is known at the end only, and processes may see others. The state
        # carries the class's name because a MetricCollection lets two metrics share their states
        # for good when these have equal names and happen to be equal after the first batch; within
        # a class the lines differ by the figures' names.
        self._lines = f"{type(self).__name__}_lines"
        self.add_state(self._lines, [], dist_reduce_fx="cat")

    @abstractmethod
    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return what each query adds to each figure, {figure: B counts}.

        Raises:
            ValueError: the predictions do not fit the batch, or an instance lacks what is counted.
        """

    def aggregation(self, name: str) -> Aggregation:
        """Return how the figure `name` comes out of the counts."""
        return MEAN

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch.

        Raises:
            ValueError: as `counts`.
        """
        counts = self.counts(predictions, batch)
        line = f"{json.dumps([len(batch.instances), counts])}\n".encode()
        new = torch.frombuffer(bytearray(line), dtype=torch.uint8).to(self.device)
        cast(list[Tensor], getattr(self, self._lines)).append(new)

    def take_part(self) -> None:
        """Count nothing: of several processes one may have no query, and is asked for its state."""
        line = torch.frombuffer(bytearray(b"[0, {}]\n"), dtype=torch.uint8).to(self.device)
        cast(list[Tensor], getattr(self, self._lines)).append(line)

    def rows(self) -> dict[str, list[Count]]:
        """Return what all queries so far added to each figure, None where a query does not count.

        In the order of the updates; with several processes, one process after the other.
        """
        found: dict[str, list[Count]] = {name: [] for name in self.names}
        lines, total = getattr(self, self._lines), 0
        if isinstance(lines, list) and not lines:
            return found
        text = bytes(dim_zero_cat(lines).cpu().numpy()).decode()
        for size, counts in map(json.loads, text.splitlines()):
            for name in {**found, **counts}:
                found.setdefault(name, [None] * total).extend(counts.get(name, [None] * size))
            total += size
        return found

    def compute(self) -> dict[str, Tensor]:
        """Return the figures, 0 where there was nothing to count."""
        return {
            name: torch.tensor(aggregate(self.aggregation(name), rows), device=self.device)
            for name, rows in self.rows().items()
        }


class QueryMean(CountedMetric):
    """Mean of a value per query; `compute()` returns it under `name`, 0 when there was no query.

    Args:
        name: the logged name, for example "recall@5".
    """

    def __init__(self, name: str) -> None:
        super().__init__([name])
        self.name = name

    @abstractmethod
    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the value of each query, (B,)."""

    def counts(self, predictions: Predictions, batch: RagBatch) -> dict[str, list[Count]]:
        """Return the value of each query, to seven digits behind the point.

        Raises:
            ValueError: the predictions do not fit the batch.
        """
        values = self.values(predictions, batch).tolist()  # B
        return {self.name: [round(value, 7) for value in values]}  # float32 has no more

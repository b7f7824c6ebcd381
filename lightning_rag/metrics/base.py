"""What the metric classes share: predictions beside gold answers, and the mean over queries."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

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


class QueryMean(Metric):
    """Mean of a value per query; `compute()` returns it under `name`, 0 when there was no query.

    Args:
        name: the logged name, for example "recall@5".
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        # The states carry the metric's name because a MetricCollection lets two metrics share their
        # states for good when these have equal names and happen to be equal after the first batch,
        # as recall@1 and recall@5 often are.
        self._total, self._count = f"{name}_total", f"{name}_count"
        self.add_state(self._total, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state(self._count, torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def values(self, predictions: Predictions, batch: RagBatch) -> Tensor:
        """Return the value of each query, (B,)."""

    def update(self, predictions: Predictions, batch: RagBatch) -> None:
        """Count the queries of a batch.

        Raises:
            ValueError: the predictions do not fit the batch.
        """
        values = self.values(predictions, batch).to(self.device)  # (B,)
        setattr(self, self._total, getattr(self, self._total) + values.sum())
        setattr(self, self._count, getattr(self, self._count) + values.numel())

    def compute(self) -> dict[str, Tensor]:
        """Return {name: mean over the queries}."""
        return {self.name: getattr(self, self._total) / getattr(self, self._count).clamp(min=1)}

"""A phase of a method, and the bank that keeps what its estimate pass found (design: one idea)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_rag.errors import UserError
from lightning_rag.types import LossTerms, RagBatch


@dataclass
class Phase:
    """A stretch of training: an optional estimate pass, then epochs or steps of one loss.

    Args:
        name: unique within the method; names log keys and checkpoints.
        trains: names of the parameter groups that learn; all others are frozen.
        loss: the loss of a batch.
        estimate: run once over the training queries before the phase, without gradient; returns
            tensors (B, ...) whose rows are kept in the method's bank by query row.
        epochs: passes over the training queries; exactly one of `epochs` and `steps`.
        steps: optimiser steps.
        monitor: metric (without its stage) that chooses the phase's best weights, which start the
            next phase; "loss" = the phase's own on the validation queries, without dropout; None =
            the task's.
        mode: whether the best value of `monitor` is the largest or the smallest.
        patience: the phase ends early after so many validations without a better value.
    """

    name: str
    trains: tuple[str, ...]
    loss: Callable[[RagBatch], LossTerms]
    estimate: Callable[[RagBatch], dict[str, Tensor]] | None = None
    epochs: int | None = None
    steps: int | None = None
    monitor: str | None = None
    mode: Literal["max", "min"] = "max"
    patience: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"phase {self.name!r} has epochs={self.epochs} and steps={self.steps}; "
                "exactly one of them must be given"
            )
        length = self.epochs if self.epochs is not None else self.steps
        if length is None or length < 1:
            raise UserError(f"phase {self.name!r} lasts {length} epochs or steps; legal: 1 or more")


class Bank:
    """What an estimate pass found for the training queries: named tensors (Q, ...) on the CPU."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forget everything."""
        self._tensors.clear()

    def put(self, rows: Tensor, values: Mapping[str, Tensor], size: int) -> None:
        """Keep `values` (B, ...) for the query rows `rows` (B,) of `size` training queries."""
        rows = rows.cpu()
        for name, value in values.items():
            if name not in self._tensors:
                self._tensors[name] = torch.zeros(size, *value.shape[1:], dtype=value.dtype)
            self._tensors[name][rows] = value.detach().cpu()

    def get(self, name: str, rows: Tensor) -> Tensor:
        """Return the kept values of `rows` (B,): (B, ...), on the device of `rows`."""
        if name not in self._tensors:
            known = ", ".join(sorted(self._tensors)) or "nothing"
            raise KeyError(f"the bank holds no {name!r}; it holds {known}")
        return self._tensors[name][rows.cpu()].to(rows.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors, for a checkpoint."""
        return dict(self._tensors)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of a checkpoint."""
        self._tensors = dict(state)

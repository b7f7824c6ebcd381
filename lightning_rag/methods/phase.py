"""A phase of a method, and the bank that keeps what its estimate pass found (design: one idea)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType
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
        series: phases in a row with the same name here are iterations of one thing, or its start
            and its iterations. Each begins with the best weights of the one before; the series ends
            with the best of them all. "" = the phase stands alone.
        series_patience: the rest of the series is skipped if, when this phase ends, so many phases
            in a row had no better value than those before them. Phases that saw no validation are
            not counted; None = every phase takes place.
        start_from: name of an earlier phase; its best weights, or its last if it saw no validation,
            are loaded after the estimate, which is made with the weights as they are.
        summarize: given the bank's tensors (Q, …) after the estimate, returns figures of it; they
            are logged as estimate/<name> and kept in summary.json. In a rehearsal (fast_dev_run)
            most rows are still 0.
        validate: given a validation batch, without gradient or dropout, returns figures (B,) of it,
            NaN for queries that have none; their means are val/<name>. While training, they take
            the place of answers: for a phase of which answers say nothing, or cost too much.
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
    series: str = ""
    series_patience: int | None = None
    start_from: str | None = None
    summarize: Callable[[Mapping[str, Tensor]], dict[str, float]] | None = None
    validate: Callable[[RagBatch], dict[str, Tensor]] | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"phase {self.name!r} has epochs={self.epochs} and steps={self.steps}; "
                "exactly one of them must be given"
            )
        length = self.epochs if self.epochs is not None else self.steps
        if length is None or length < 1:
            raise UserError(f"phase {self.name!r} lasts {length} epochs or steps; legal: 1 or more")
        if self.series_patience is not None and self.series_patience < 1:
            raise UserError(
                f"phase {self.name!r} has a series_patience of {self.series_patience}; "
                "legal: 1 or more, or null"
            )
        if self.series_patience is not None and not self.series:
            raise ValueError(f"phase {self.name!r} has a series_patience, but no series")
        if self.summarize is not None and self.estimate is None:
            raise ValueError(f"phase {self.name!r} has a summary of its estimate, but no estimate")
        if self.validate is not None and self.monitor is None:
            raise ValueError(
                f"phase {self.name!r} validates by figures of its own and monitors the task's; "
                "legal: one of its own, or 'loss'"
            )


def series_of(phases: Sequence[Phase], index: int) -> range:
    """Return the indices of all phases in the series of phase `index`; it alone, if in none."""
    name = phases[index].series
    members = [i for i, phase in enumerate(phases) if name and phase.series == name] or [index]
    return range(members[0], members[-1] + 1)


def check_schedule(phases: Sequence[Phase]) -> list[Phase]:
    """Return the phases of a method, if they can follow each other.

    Raises:
        ValueError: a name is used twice, a series is interrupted or compares values that are not
            of one kind, or `start_from` names a phase that has no weights by then.
    """
    names = [phase.name for phase in phases]
    if len(set(names)) < len(names):
        raise ValueError(f"the phases are called {names}; legal: each name once")
    runs = [name for name, _ in groupby(phase.series for phase in phases) if name]
    if len(set(runs)) < len(runs):
        raise ValueError(f"the series {runs} are interrupted; legal: phases in a row")
    for index, phase in enumerate(phases):
        first = phases[series_of(phases, index).start]
        if (phase.monitor, phase.mode) != (first.monitor, first.mode):
            raise ValueError(
                f"series {phase.series!r}: {first.name!r} looks for the {first.mode} of "
                f"{first.monitor!r}, {phase.name!r} for the {phase.mode} of {phase.monitor!r}; "
                "legal: the same in all of its phases"
            )
        if phase.monitor == "loss" and phase.loss != first.loss:
            raise ValueError(
                f"series {phase.series!r}: the losses of {first.name!r} and {phase.name!r} are "
                "two functions, whose values cannot be compared; legal: another monitor"
            )
        legal = [earlier.name for earlier in _certain(phases, index)]
        if phase.start_from is not None and phase.start_from not in legal:
            raise ValueError(
                f"phase {phase.name!r} starts from {phase.start_from!r}; legal: {legal}, the "
                "phases that surely took place before it"
            )
    return list(phases)


def _certain(phases: Sequence[Phase], index: int) -> list[Phase]:
    """Return the phases before `index` that no series can have skipped when it begins."""
    certain = []
    for earlier in range(index):
        series = series_of(phases, earlier)
        # The first phase with a patience can only end the series behind itself.
        patient = any(phases[i].series_patience for i in range(series.start, earlier))
        if index in series or not patient:
            certain.append(phases[earlier])
    return certain


class Bank:
    """What an estimate pass found for the training queries: named tensors (Q, ...) on the CPU."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors (Q, …) by name, to read; rows in the order of the training split."""
        return MappingProxyType(self._tensors)

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

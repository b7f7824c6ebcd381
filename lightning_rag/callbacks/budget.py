"""Budgets: training ends when so many seconds, generator tokens or FLOPs are spent."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.methods.base import Method, as_method
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)


@dataclass
class BudgetConfig:
    """What training may cost; the limit that is used up first ends it. None = no limit.

    Epochs are limited by the method's phases and by `trainer.max_epochs`, steps by
    `trainer.max_steps`, and the clock on the wall, validations included, by `trainer.max_time`.

    Args:
        seconds: of steps, estimates and refreshes of the index, on the machine that it runs on.
        generator_tokens: tokens through the generator, in estimates and in training.
        flops: estimated as `CostLedger` does it, for all models.
    """

    seconds: float | None = None
    generator_tokens: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if limit is not None and not 0 < limit < math.inf:
                raise UserError(f"budget.{name} is {limit}; legal: above 0, or null for no limit")


class Budget(Callback):
    """Ends training as soon as the first limit is used up, in whatever phase that is.

    It reads what `CostLedger` has booked, all phases together, so that a resumed run goes on
    counting. It looks after every optimiser step and after every batch of an estimate: a run costs
    at most one of these more than its budget, with the refresh of the index before the step. A
    budget that is smaller than a step buys one.

    What a run is that was cut:

    - after its last step it is validated once more (unless `check_val_every_n_epoch` leaves this
      epoch out), outside the budget, and its best weights so far are kept and tested: those of its
      phase, or in a series those of the best of its phases. A phase without any validation leaves
      its last weights;
    - the phases behind the cut do not take place. What only they would have trained stays as it
      was: a cut within RUIE's reward phase leaves an untrained retriever;
    - an estimate that the budget does not last for is left within, and its phase takes no step. The
      weights are those of the phases before. What was found stays on disk, and a larger budget goes
      on from there;
    - the learning rate follows the whole phase, not the budget: it has not come down when the run
      is cut. Where methods are to be compared at equal cost, choose epochs that about fit it
      (Li et al. 2020, arXiv 1905.04753, measured how much a schedule that ends with its budget
      is worth).

    `summary.json` says under `stopped_by` what ended the training: a limit's name, "phases" (it ran
    to its end or to its patience's), "max_epochs", "max_steps", or "trainer" (`max_time`, or
    another callback); and under `budget` the limits, what was spent, the last step, and the phase
    in which training was cut (null where it was not).

    A run that was cut can go on with a larger budget (`--ckpt_path last`). The epoch that it was
    cut in does not count: a whole one takes its place. So the run is not the same, to the bit, as
    one that had the larger budget from the start.

    Args:
        limits: what training may cost.

    Attributes:
        reached: the limit that is used up, once it has ended the training; "" = none.
        phase: the phase in which it did so.
    """

    def __init__(self, limits: BudgetConfig) -> None:
        self.limits = {name: limit for name, limit in asdict(limits).items() if limit is not None}
        self.reached = ""
        self.phase = ""
        self.seen = 0  # the step that was looked at last

    def state_dict(self) -> dict[str, Any]:
        """Return which limit has ended the run, and where."""
        return {"reached": self.reached, "phase": self.phase}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.reached, self.phase = state_dict["reached"], state_dict["phase"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to be given two orders at once.

        Raises:
            UserError: the trainer must not stop before some step or epoch.
        """
        if self.limits and (trainer.min_epochs or trainer.min_steps):
            raise UserError(
                f"budget.{next(iter(self.limits))} would end the training, trainer.min_epochs or "
                "trainer.min_steps forbids it; legal: one of them"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run at once if it has no budget left."""
        method, self.seen = as_method(pl_module), trainer.global_step
        before, phase, self.reached = self.reached, self.phase, ""
        if (before or not method.finished) and self.stops(trainer, method) and before:
            self.phase = phase

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: RagBatch,
        batch_idx: int,
    ) -> None:
        """Look at the books after an optimiser step, if there is anything left to cut."""
        if trainer.global_step == self.seen:
            return  # the batch's gradients wait for those of the next
        self.seen = trainer.global_step
        method = as_method(pl_module)
        if not _ends_with_this_step(method):
            self.stops(trainer, method)

    def stops(self, trainer: Trainer, method: Method) -> bool:
        """Tell the trainer to stop if a limit is used up; return whether it is."""
        if not self.reached:
            spent = _spent(trainer) if self.limits else {}
            for name, limit in self.limits.items():
                if spent[name] >= limit:
                    self.reached, self.phase = name, method.phase.name
                    log.info(
                        "budget.%s: %.6g of %.6g are spent; training ends in phase %r, at step %d",
                        *(name, spent[name], limit, self.phase, trainer.global_step),
                    )
                    break
        if self.reached:
            trainer.should_stop = True
        return bool(self.reached)

    def summary(self, trainer: Trainer, method: Method) -> dict[str, Json]:
        """Return what ended the training, and what it had cost by then, for `summary.json`."""
        spent: dict[str, Json] = dict(_spent(trainer))
        limits: dict[str, Json] = {**self.limits}
        phase = self.phase if self.reached else None if method.finished else method.phase.name
        stood: dict[str, Json] = {"phase": phase, "step": trainer.global_step}
        return {
            "stopped_by": self.reached or _other_end(trainer, method),
            "budget": {"limits": limits, "spent": spent, **stood},
        }


def out_of_budget(method: Method) -> bool:
    """Return whether the run has a budget and has used it up; the trainer is then told to stop."""
    budgets = [c for c in method.trainer.callbacks if isinstance(c, Budget)]  # type: ignore[attr-defined]
    return any([budget.stops(method.trainer, method) for budget in budgets])


def _spent(trainer: Trainer) -> dict[str, float]:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CostLedger):
            return callback.spent()
    raise ValueError("a Budget reads the books of a CostLedger, which the trainer does not have")


def _ends_with_this_step(method: Method) -> bool:
    """Whether the last phase has had all of its steps."""
    if method.phase_index < len(method.schedule) - 1:
        return False
    return method.global_step - method.phase_start >= method.phase_steps(method.phase)


def _other_end(trainer: Trainer, method: Method) -> str:
    """Return what ended a training that had budget left."""
    if method.finished:
        return "phases"
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return "max_steps"
    if trainer.max_epochs not in (None, -1) and trainer.current_epoch >= trainer.max_epochs:
        return "max_epochs"
    return "trainer"

"""Runs the phases of a method inside Lightning's loop: estimate, train, keep the best, go on."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_rag.callbacks.checkpoints import save_checkpoint
from lightning_rag.callbacks.cost_ledger import booked
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method, as_method
from lightning_rag.methods.phase import Phase
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)


class PhaseSchedule(Callback):
    """Walks through a method's phases.

    When a phase begins, its estimate pass fills the bank, its groups are unfrozen and all others
    frozen, and optimiser and schedule start afresh. When it ends, by its length or its patience,
    the best weights that validation has seen in it are loaded. After the last phase training
    stops. The trainer's own limits (`max_epochs`, `max_steps`, `max_time`) still cap the run.

    The best weights of the last phase are `checkpoints/best.ckpt` in the run's folder; those of an
    earlier phase are `checkpoints/<phase>-best.ckpt`.

    Args:
        folder: the run's folder of checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun = False
        self.start_epoch = 0
        self.best: float | None = None
        self.best_is_current = False
        self.misses = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {
            "begun": self.begun,
            "start_epoch": self.start_epoch,
            "best": self.best,
            "best_is_current": self.best_is_current,
            "misses": self.misses,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and unfreeze as the phase says; a finished run stops at once."""
        method = as_method(pl_module)
        if method.phase_index >= len(method.schedule):
            log.info("all phases of this run are finished")
            trainer.should_stop = True
            return
        lengths = [phase.epochs for phase in method.schedule]
        if trainer.max_epochs == -1 and None not in lengths:
            # The phases stop the run; this only tells the progress bar how far it is to go.
            trainer.fit_loop.max_epochs = sum(length or 0 for length in lengths)
        self._freeze(trainer, method)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase if that was not done yet."""
        if not self.begun:
            self._begin(trainer, as_method(pl_module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RagBatch, batch_idx: int
    ) -> None:
        """Go on within the epoch when the steps of a phase, or its patience, are used up."""
        method = as_method(pl_module)
        if self._steps_done(method) or self._tired(method):
            # Not when the last step ends: a validation after it still judges this phase.
            self._finish(trainer, method)
            self._begin(trainer, method)
            self.start_epoch += 1  # what is left of this epoch is no epoch of the new phase

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: RagBatch,
        batch_idx: int,
    ) -> None:
        """Stop when the steps of the last phase are done; Lightning validates once more."""
        self.best_is_current = False
        method = as_method(pl_module)
        if self._steps_done(method) and method.phase_index == len(method.schedule) - 1:
            trainer.should_stop = True

    def _steps_done(self, method: Method) -> bool:
        steps = method.phase.steps
        taken = method.trainer.global_step - method.phase_start
        return self.begun and steps is not None and taken >= steps

    def _tired(self, method: Method) -> bool:
        patience = method.phase.patience
        return self.begun and patience is not None and self.misses >= max(1, patience)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best of the phase."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.begun:
            return
        method = as_method(pl_module)
        phase = method.phase
        name = f"val/{phase.monitor or method.data.task.monitor}"
        if name not in trainer.callback_metrics:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise UserError(f"phase {phase.name!r} monitors {name!r}, which is none of: {known}")
        value = float(trainer.callback_metrics[name])
        better = self.best is None or (
            value > self.best if phase.mode == "max" else value < self.best
        )
        if better:
            self.best, self.best_is_current, self.misses = value, True, 0
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                save_checkpoint(trainer, self._best_path(method), resumable=False)
        else:
            self.misses += 1
        if self._tired(method) and method.phase_index == len(method.schedule) - 1:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a phase that is counted in epochs, or whose patience is used up."""
        if not self.begun:
            return
        method = as_method(pl_module)
        phase = method.phase
        used = trainer.current_epoch + 1 - self.start_epoch
        over = phase.epochs is not None and used >= phase.epochs
        if over or self._tired(method) or self._steps_done(method):
            self._finish(trainer, method)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the best weights of the last phase in the model and in `best.ckpt`."""
        method = as_method(pl_module)
        if self.begun:  # cut short by the trainer's own limit
            self._load_best(method)
        path = self.folder / "best.ckpt"
        if not trainer.fast_dev_run and not path.exists():  # type: ignore[attr-defined]
            save_checkpoint(trainer, path, resumable=False)

    def _begin(self, trainer: Trainer, method: Method) -> None:
        phase = method.phase
        method.phase_start = trainer.global_step
        self.begun, self.start_epoch = True, trainer.current_epoch
        self.best, self.best_is_current, self.misses = None, False, 0
        length = f"{phase.epochs} epochs" if phase.epochs is not None else f"{phase.steps} steps"
        log.info("phase %r: trains %s, %s", phase.name, ", ".join(phase.trains), length)
        if phase.estimate is not None:
            with booked(method, "estimate"):
                self._estimate(trainer, method, phase)
        self._freeze(trainer, method)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
            first = method.optimizer_config.factor(0, method.phase_steps(phase))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * first

    def _estimate(self, trainer: Trainer, method: Method, phase: Phase) -> None:
        """Run the estimate of `phase` once over the training queries and keep its rows."""
        if phase.estimate is None:
            return
        method.bank.clear()
        method.eval()
        size = len(method.data.splits.train)
        batches: Iterable[RagBatch] = method.data.estimate_dataloader()
        if rehearsed := trainer.fast_dev_run:  # type: ignore[attr-defined]
            batches = islice(method.data.train_dataloader(), int(rehearsed))
        hidden = trainer.progress_bar_callback is None
        shown = tqdm(batches, desc=f"Estimate {phase.name}", disable=hidden, leave=False)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            for index, batch in enumerate(shown):
                torch.manual_seed(
                    (method.data.seed * 1009 + method.phase_index) * 1_000_003 + index
                )
                batch = batch.to(method.device)
                method.bank.put(batch.rows, phase.estimate(batch), size)

    def _freeze(self, trainer: Trainer, method: Method) -> None:
        """Let the phase's groups learn, with dropout; freeze the others, without."""
        phase, groups = method.phase, method.groups()
        # Parameters outside the optimiser are frozen by their backbone and stay so.
        ours = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        for name, module in groups.items():
            learns = name in phase.trains
            module.train(learns)
            for parameter in module.parameters():
                if id(parameter) in ours:
                    parameter.requires_grad_(learns)

    def _finish(self, trainer: Trainer, method: Method) -> None:
        self._load_best(method)
        log.info("phase %r ended at step %d", method.phase.name, trainer.global_step)
        method.phase_index += 1
        self.begun = False
        if method.phase_index >= len(method.schedule):
            trainer.should_stop = True

    def _load_best(self, method: Method) -> None:
        path = self._best_path(method)
        if self.best is None or self.best_is_current or not path.exists():
            return
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        method.load_state_dict(weights)
        method.refreshed_at = -1  # the index is of other weights
        self.best_is_current = True

    def _best_path(self, method: Method) -> Path:
        last = method.phase_index >= len(method.schedule) - 1
        name = "best.ckpt" if last else f"{method.phase.name}-best.ckpt"
        return self.folder / name

"""Runs the phases of a method inside Lightning's loop: estimate, train, keep the best, go on."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_rag.callbacks.budget import out_of_budget
from lightning_rag.callbacks.checkpoints import link_checkpoint, save_checkpoint
from lightning_rag.callbacks.cost_ledger import booked
from lightning_rag.callbacks.estimate_shards import (
    EstimateShards,
    Meter,
    manifest_of,
    share_bank,
    turns,
)
from lightning_rag.errors import UserError
from lightning_rag.functional.processes import wait_for_all
from lightning_rag.methods.base import Method, as_method
from lightning_rag.methods.phase import series_of
from lightning_rag.types import RagBatch

log = logging.getLogger(__name__)

TELL_EVERY = 60.0  # seconds between two lines of an estimate that has no progress bar
SHARD_SECONDS = 60.0  # between two shards of an estimate: so much of it a kill can cost


@dataclass
class Best:
    """The best value of a phase, or of a series of phases.

    Attributes:
        value: None = nothing was validated yet.
        file: the checkpoint with the weights of that value.
        misses: validations (of a series: phases) in a row that were no better.
    """

    value: float | None = None
    file: str = ""
    misses: int = 0

    def take(self, value: float, file: str, mode: str) -> bool:
        """Count a value, whose weights are in `file`; return whether it is the best so far."""
        better = self.value is None or (value > self.value if mode == "max" else value < self.value)
        if better:
            self.value, self.file, self.misses = value, file, 0
        else:
            self.misses += 1
        return better


class PhaseSchedule(Callback):
    """Walks through a method's phases.

    When a phase begins, its estimate pass fills the bank, the weights that it starts from are
    loaded, its groups are unfrozen and all others frozen, and optimiser and schedule start afresh.
    When it ends, by its length or its patience, the best weights that validation has seen in it are
    loaded. At the end of a series these are the best of all its phases; a series ends with its last
    phase, or when its patience is used up. After the last phase training stops. The trainer's own
    limits (`max_epochs`, `max_steps`, `max_time`) still cap the run.

    The best weights of the last phase, or of the last series, are `checkpoints/best.ckpt` in the
    run's folder; those of an earlier phase, and of each phase of a series, are
    `checkpoints/<phase>-best.ckpt`.

    While an estimate runs, its finished batches are written to `estimates/<phase>/` beside the
    checkpoints. A run that was killed within it, and is resumed or started again, reads them and
    goes on, with the same result to the bit. They are removed as soon as a checkpoint has the bank.

    Args:
        folder: the run's folder of checkpoints.
        settings: the run's configuration, flat: batches found under another one are not used.

    Attributes:
        shard_seconds: least time between two files of an estimate.
        estimates: what the phases' summaries said of their estimates, by phase.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object] | None = None) -> None:
        self.folder = folder
        self.settings = dict(settings or {})
        self.shard_seconds = SHARD_SECONDS
        self.superseded: list[str] = []  # phases whose shards the last checkpoint replaces
        self.begun = False
        self.start_epoch = 0
        self.best = Best()  # of the phase
        self.best_of_series = Best()  # a phase in no series is a series of its own
        self.holds = ""  # the checkpoint of which the model has the weights; "" = no best one's
        self.estimates: dict[str, dict[str, float]] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on."""
        return {
            "begun": self.begun,
            "start_epoch": self.start_epoch,
            "best": asdict(self.best),
            "best_of_series": asdict(self.best_of_series),
            "holds": self.holds,
            "estimates": self.estimates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state of a checkpoint."""
        self.begun = state_dict["begun"]
        self.start_epoch = state_dict["start_epoch"]
        self.best = Best(**state_dict["best"])
        self.best_of_series = Best(**state_dict["best_of_series"])
        self.holds = state_dict["holds"]
        self.estimates = state_dict["estimates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note whose shards are not needed once this checkpoint, with the bank, is written."""
        self.superseded = self._estimated(as_method(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze and unfreeze as the phase says; a finished run stops at once."""
        method = as_method(pl_module)
        method.stopped = False
        self.superseded = self._estimated(method)  # a resumed run has their bank
        if method.finished:
            log.info("all phases of this run are finished")
            trainer.should_stop = True
            return
        lengths = [phase.epochs for phase in method.schedule[method.phase_index :]]
        if trainer.max_epochs == -1 and None not in lengths:
            # The phases stop the run; this only tells the progress bar how far it is to go.
            begin = self.start_epoch if self.begun else trainer.current_epoch
            trainer.fit_loop.max_epochs = begin + sum(length or 0 for length in lengths)
        self._freeze(trainer, method)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the phase if that was not done yet."""
        self._remove_superseded(trainer)
        if not self.begun:
            self._begin(trainer, as_method(pl_module))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: RagBatch, batch_idx: int
    ) -> None:
        """Go on within the epoch when the steps of a phase, or its patience, are used up."""
        self._remove_superseded(trainer)
        method = as_method(pl_module)
        if self._steps_done(method) or self._tired(method):
            # Not when the last step ends: a validation after it still judges this phase.
            self._finish(trainer, method)
            if not method.finished:
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
        self.holds = ""
        method = as_method(pl_module)
        if self._steps_done(method) and method.phase_index == len(method.schedule) - 1:
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the weights if they are the best of the phase."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self.begun:
            return
        method = as_method(pl_module)
        phase, file = method.phase, _file(method)
        name = f"val/{phase.monitor or method.data.task.monitor}"
        if name not in trainer.callback_metrics:
            known = ", ".join(sorted(k for k in trainer.callback_metrics if k.startswith("val/")))
            raise UserError(f"phase {phase.name!r} monitors {name!r}, which is none of: {known}")
        if self.best.take(float(trainer.callback_metrics[name]), file, phase.mode):
            self._save(trainer, file)
        if self._tired(method) and method.phase_index == len(method.schedule) - 1:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a phase that is counted in epochs, or whose patience is used up."""
        if not self.begun:
            return
        method = as_method(pl_module)
        phase = method.phase
        if not trainer.is_last_batch:
            self.start_epoch += 1  # training stops within this epoch: it does not count as one
        used = trainer.current_epoch + 1 - self.start_epoch
        over = phase.epochs is not None and used >= phase.epochs
        if over or self._tired(method) or self._steps_done(method):
            self._finish(trainer, method)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the best weights of the last phase or series in the model and in `best.ckpt`."""
        method = as_method(pl_module)
        if not method.finished:  # cut short by the trainer's own limit
            self._compare(trainer, method)
            self._load(trainer, method, self.best_of_series.file)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path, source = self.folder / "best.ckpt", self.folder / self.holds
        if self.holds and source.exists():  # of an earlier phase, where the last has no best ones
            self._link(trainer, source, path)
        else:
            save_checkpoint(trainer, path, resumable=False)
        if trainer.is_global_zero:
            self._remove_shards(method)

    def _steps_done(self, method: Method) -> bool:
        steps = method.phase.steps
        taken = method.trainer.global_step - method.phase_start
        return self.begun and steps is not None and taken >= steps

    def _tired(self, method: Method) -> bool:
        patience = method.phase.patience
        return self.begun and patience is not None and self.best.misses >= max(1, patience)

    def _begin(self, trainer: Trainer, method: Method) -> None:
        """Estimate, take the weights to start from, and let the phase's groups learn."""
        phase = method.phase
        method.phase_start = trainer.global_step
        self.begun, self.start_epoch = True, trainer.current_epoch
        self.best = Best()
        length = f"{phase.epochs} epochs" if phase.epochs is not None else f"{phase.steps} steps"
        log.info("phase %r: trains %s, %s", phase.name, ", ".join(phase.trains), length)
        if not self._estimate(trainer, method):
            self.begun, method.stopped = False, True
            method.bank.clear()
            log.warning("phase %r takes no step: the budget did not last for it", phase.name)
            return
        if phase.start_from is not None:
            self._load(trainer, method, f"{phase.start_from}-best.ckpt")
        self._freeze(trainer, method)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
            first = method.optimizer_config.factor(0, method.phase_steps(phase))
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * first

    def _estimate(self, trainer: Trainer, method: Method) -> bool:
        """Run the phase's estimate, if it has one, over the training queries; fill the bank.

        Several processes take turns with the batches that are left, and write shards of their own;
        at the end each of them has the whole bank. What a batch gives does not depend on whose it
        is.

        Returns:
            Whether the budget lasted for it.
        """
        phase, size = method.phase, len(method.data.splits.train)
        if phase.estimate is None:
            return True
        method.bank.clear()
        method.eval()
        batches: Iterable[RagBatch] = method.data.estimate_dataloader()
        if rehearsed := trainer.fast_dev_run:  # type: ignore[attr-defined]
            batches = list(islice(method.data.train_dataloader(), int(rehearsed)))
        log.info("phase %r: estimate over the training queries", phase.name)
        # A rehearsal's batches are shared out already.
        rank, world = (0, 1) if rehearsed else method.data.place
        own: list[Tensor] = []
        hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
        shown = tqdm(batches, desc=f"Estimate {phase.name}", disable=hidden, leave=False)
        context, told = trainer.precision_plugin.forward_context(), time.monotonic()
        with booked(method, "estimate") as book, torch.no_grad(), context:
            shards, meter = None if rehearsed else self._shards(trainer, method), Meter(method)
            done = self._restore(method, shards, meter) if shards is not None else set()
            for index, batch in turns(shown, done, rank, world, partial(_affords, method, book)):
                torch.manual_seed(
                    (method.data.seed * 1009 + method.phase_index) * 1_000_003 + index
                )
                batch = batch.to(method.device)
                values = phase.estimate(batch)
                method.bank.put(batch.rows, values, size)
                own.append(batch.rows.cpu())
                if shards is not None:
                    shards.add(index, batch.rows, values, meter.lap())
                if hidden and time.monotonic() - told >= TELL_EVERY:
                    told = time.monotonic()
                    log.info(
                        "phase %r: estimate, batch %d of %d", phase.name, index + 1, len(shown)
                    )
            if shards is not None:
                shards.flush()
            book()
            if out_of_budget(method):
                return False
            share_bank(method.bank, own, size, method.device)
            if phase.summarize is not None:
                self._report(trainer, phase.name, phase.summarize(method.bank.tensors))
        return True

    def _shards(self, trainer: Trainer, method: Method) -> EstimateShards:
        """Return the files of the current phase's estimate."""
        folder = self._shard_folder() / method.phase.name
        manifest = manifest_of(trainer, method, self.settings)
        return EstimateShards(folder, manifest, self.shard_seconds)

    def _restore(self, method: Method, shards: EstimateShards, meter: Meter) -> set[int]:
        """Take what a killed run has found of this estimate; return the numbers of its batches."""
        done: set[int] = set()
        first = method.trainer.is_global_zero
        if not first:
            wait_for_all()
        found = shards.read()
        if first:  # what cannot be used is gone when the others look
            wait_for_all()
        wait_for_all()  # until all have read, nothing new is written
        if found:
            meter.withdraw()
        for shard in found:
            method.bank.put(shard.rows, shard.values, len(method.data.splits.train))
            if first:  # once for all processes
                meter.credit(shard.spent)
            done.update(shard.batches)
        if done:
            name = method.phase.name
            log.info("phase %r: estimate goes on, %d batches were found", name, len(done))
        return done

    def _shard_folder(self) -> Path:
        """Return where the shards of all phases lie."""
        return self.folder.parent / "estimates"

    def _estimated(self, method: Method) -> list[str]:
        """Return the names of the phases whose estimate is over."""
        return [phase.name for phase in method.schedule[: method.phase_index + self.begun]]

    def _remove_superseded(self, trainer: Trainer) -> None:
        """Remove the shards of the phases whose estimate is over and in a checkpoint, if needed."""
        names, self.superseded = self.superseded, []
        rehearsed = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.is_global_zero and not rehearsed:
            for name in names:
                shutil.rmtree(self._shard_folder() / name, ignore_errors=True)

    def _remove_shards(self, method: Method) -> None:
        """Remove all shards but those of an estimate that a larger budget can go on with."""
        unfinished = [method.phase.name] if method.stopped else []
        for path in self._shard_folder().glob("*"):
            if path.name not in unfinished:
                shutil.rmtree(path, ignore_errors=True)
        if not unfinished:
            shutil.rmtree(self._shard_folder(), ignore_errors=True)

    def _report(self, trainer: Trainer, phase: str, figures: Mapping[str, float]) -> None:
        """Log what the summary of an estimate says, and keep it for `summary.json`."""
        self.estimates[phase] = {name: float(value) for name, value in figures.items()}
        said = ", ".join(f"{name} {value:.4g}" for name, value in self.estimates[phase].items())
        log.info("phase %r: estimate: %s", phase, said)
        logged = {f"estimate/{name}": value for name, value in self.estimates[phase].items()}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step=trainer.global_step)

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
        """Go on to what follows the phase, with its best weights, or those of its whole series."""
        phase, series = method.phase, series_of(method.schedule, method.phase_index)
        if self.best.value is None and any(p.start_from == phase.name for p in method.schedule):
            self._save(trainer, _file(method))
        self._compare(trainer, method)
        log.info("phase %r ended at step %d", phase.name, trainer.global_step)
        best, following = self.best, method.phase_index + 1
        if phase.series_patience and self.best_of_series.misses >= phase.series_patience:
            following = series.stop
        if following == series.stop:
            best, self.best_of_series = self.best_of_series, Best()
            if phase.series and best.value is not None:
                log.info("series %r ended; best: %s, %.4g", phase.series, best.file, best.value)
        self._load(trainer, method, best.file)
        self.begun, method.phase_index = False, following
        if method.finished:
            trainer.should_stop = True

    def _compare(self, trainer: Trainer, method: Method) -> None:
        """Count the phase's best value in its series; the last series keeps it as `best.ckpt`."""
        if not self.begun or self.best.value is None:
            return
        phase, series = method.phase, series_of(method.schedule, method.phase_index)
        better = self.best_of_series.take(self.best.value, self.best.file, phase.mode)
        rehearsed = trainer.fast_dev_run  # type: ignore[attr-defined]
        if better and series.stop == len(method.schedule) and not rehearsed:
            self._link(trainer, self.folder / self.best.file, self.folder / "best.ckpt")

    def _link(self, trainer: Trainer, source: Path, target: Path) -> None:
        """Make `target` the same file as `source`, before any process goes on."""
        if trainer.is_global_zero:
            link_checkpoint(source, target)
        trainer.strategy.barrier("link")

    def _save(self, trainer: Trainer, file: str) -> None:
        """Write the weights; a rehearsal leaves no files."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_checkpoint(trainer, self.folder / file, resumable=False)
        self.holds = file

    def _load(self, trainer: Trainer, method: Method, file: str) -> None:
        """Load weights that `_save` wrote, unless the model has them ("" = none were written)."""
        if not file or file == self.holds or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.folder / file
        if not path.exists():
            raise UserError(
                f"{path} is gone, with whose weights the run goes on; a run is continued in the "
                "folder that it was started in, with all of its checkpoints"
            )
        weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        method.load_state_dict(weights)
        method.refreshed_at = -1  # the index is of other weights
        self.holds = file


def _file(method: Method) -> str:
    """Return the name of the checkpoint with the best weights of the current phase."""
    alone, last = not method.phase.series, method.phase_index == len(method.schedule) - 1
    return "best.ckpt" if alone and last else f"{method.phase.name}-best.ckpt"


def _affords(method: Method, book: Callable[[], None]) -> bool:
    """Whether the budget lasts, as `book` finds it."""
    book()
    return not out_of_budget(method)

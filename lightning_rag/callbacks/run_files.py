"""The files that make runs comparable: `metrics.json`, `summary.json`; TensorBoard's HParams."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_rag.callbacks.budget import Budget
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.dashboard import write_hyper_parameters
from lightning_rag.callbacks.evaluator import Evaluator
from lightning_rag.callbacks.index_refresh import IndexRefresh
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.files import Json, write_json
from lightning_rag.functional.processes import summed
from lightning_rag.functional.weights import number_of_weights
from lightning_rag.methods.base import Method, as_method
from lightning_rag.methods.phase import series_of
from lightning_rag.metrics.counts import METRICS_VERSION

log = logging.getLogger(__name__)

PACKAGES = ("lightning_rag", "torch", "lightning", "transformers", "torchmetrics", "bm25s")


class RunFiles(Callback):
    """Writes what `compare` reads, as soon as it is known.

    `metrics.json` holds the validation curve (`validation`: step, phase and metrics of every
    validation) and the test metrics (`test`). `summary.json` holds method, task, seed, the hash of
    the configuration, the hashes of the data, the phases and the groups that learned in those that
    took a step (`trained`), their cost, the figures of their estimates (null = not finite), how
    stale an index was when training refreshed it (`staleness`), the point of the curve whose
    weights were kept (`validation`), and under `fit` and `test` when, where and with which code
    each was run. Its `metrics` says which metric selects models (`monitor`), of which version the
    figures are, and how they come out of the `counts` of `predictions.jsonl` (`aggregations`, of
    those that do).
    What ended the training is `stopped_by`, and `budget` what it had cost by then (see `Budget`).

    Args:
        folder: the run's folder.
        config: the run's hyper-parameters, for TensorBoard's HParams page.
        configuration: its hash; `summary.json` keeps it, so that a sweep knows a finished run.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], configuration: str = "") -> None:
        self.folder = folder
        self.config = config
        self.configuration = configuration
        self.curve: list[dict[str, Json]] = []
        self.warned: dict[str, int] = {}  # the counts of the last warning

    def state_dict(self) -> dict[str, Any]:
        """Return the validation curve, so that a resumed run continues it."""
        return {"curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the curve of a checkpoint."""
        self.curve = state_dict["curve"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point to the validation curve; a `validate` after the training is none."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        method = as_method(pl_module)
        point: dict[str, Json] = {"step": trainer.global_step, "phase": method.phase.name}
        point.update(_metrics(trainer, "val/"))
        if method.phase.monitor != "loss":
            point.pop("loss", None)  # an earlier phase's: Lightning keeps what was logged last
        self.curve.append(point)
        self._write_metrics(trainer, {"validation": list(self.curve)})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary of the training, and say if texts were too long."""
        method = as_method(pl_module)
        truncated = _truncated(method)
        self._write_summary(trainer, method, "fit", truncated)
        self._warn_of_truncation(trainer, truncated)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test metrics, and the run's line of TensorBoard's HParams page."""
        metrics = _metrics(trainer, "test/")
        self._write_metrics(trainer, {"test": metrics})
        method = as_method(pl_module)
        truncated = _truncated(method)
        self._write_summary(trainer, method, "test", truncated)
        self._warn_of_truncation(trainer, truncated)
        if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
            write_hyper_parameters(trainer.logger.experiment, self.config)

    def _warn_of_truncation(self, trainer: Trainer, truncated: Mapping[str, int]) -> None:
        cut = {name: count for name, count in truncated.items() if count}
        if trainer.is_global_zero and cut != self.warned:
            self.warned = cut
            log.warning(
                "texts longer than a model's limit were cut, so many times up to now: %s (limits: "
                "generator.max_source_length and max_target_length, encoder.max_length, which "
                "for a model that reads query and passage as one is that of both)",
                ", ".join(f"{name}: {count}" for name, count in cut.items()),
            )

    def _write_metrics(self, trainer: Trainer, new: Mapping[str, Json]) -> None:
        if trainer.is_global_zero:
            path = self.folder / "metrics.json"
            write_json(path, {**_read(path), **new})

    def _write_summary(
        self, trainer: Trainer, method: Method, stage: str, truncated: Mapping[str, int]
    ) -> None:
        records = _records(trainer, method)  # which all processes put together
        if not trainer.is_global_zero:
            return
        path = self.folder / "summary.json"
        before = _read(path)
        circumstances: dict[str, Json] = {
            "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {package: version(package) for package in PACKAGES},
            "machine": machine(),
            "truncated_texts": dict(truncated),
            "processes": trainer.world_size,
        }
        taken = [phase for phase in method.schedule if phase.name in method.learned]
        facts: dict[str, Json] = {
            "method": type(method).__name__,
            "task": type(method.data.task).__name__,
            "seed": method.data.seed,
            "configuration": self.configuration,
            "data": method.data.summary(),
            "phases": [phase.name for phase in method.schedule],
            "trained": [*sorted({name for phase in taken for name in phase.trains})],
            "parameters": {
                name: sum(map(number_of_weights, group.parameters()))
                for name, group in method.groups().items()
            },
        }
        if stage == "fit":
            facts["validation"] = kept_point(self.curve, method, begun=_begun(trainer))
        for name in ("cost", "estimates"):  # with what an earlier run wrote of other phases
            records[name] = {**before.get(name, {}), **cast(dict[str, Json], records[name])}
        facts |= records
        write_json(path, {**before, **facts, stage: circumstances})


def kept_point(
    curve: Sequence[Mapping[str, Json]], method: Method, *, begun: bool = True
) -> Mapping[str, Json] | None:
    """Return the point of the validation curve whose weights a training has kept as `best.ckpt`.

    It is the best of the last phase that was begun, or of all phases of its series; of equal ones
    the first. None = there was no validation in them.

    Args:
        curve: the points.
        method: which says how far it came.
        begun: whether its current phase has: a run can be cut between two phases.
    """
    schedule = method.schedule
    last = method.phase_index if begun else method.phase_index - 1
    phase = schedule[index := max(0, min(last, len(schedule) - 1))]
    names = {schedule[i].name for i in series_of(schedule, index)}
    monitor = phase.monitor or method.data.task.monitor
    points = [point for point in curve if point["phase"] in names and monitor in point]
    best = max if phase.mode == "max" else min
    return best(points, key=lambda point: cast(float, point[monitor]), default=None)


def _begun(trainer: Trainer) -> bool:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return all(callback.begun for callback in callbacks if isinstance(callback, PhaseSchedule))


def _records(trainer: Trainer, method: Method) -> dict[str, Json]:
    """Return what the callbacks know; each of several processes has to call this."""
    costs: dict[str, Json] = {}
    estimates: dict[str, Json] = {}
    monitor = method.data.task.monitor
    metrics: dict[str, Json] = {"version": METRICS_VERSION, "monitor": monitor}
    found: dict[str, Json] = {"cost": costs, "estimates": estimates, "metrics": metrics}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CostLedger):
            callback.agree()
            costs.update(callback.phases)
        if isinstance(callback, PhaseSchedule):
            estimates.update(_finite(callback.estimates))
        if isinstance(callback, IndexRefresh) and callback.staleness:
            found["staleness"] = [dict(point) for point in callback.staleness]
        if isinstance(callback, Budget) and trainer.state.fn == "fit":
            found |= callback.summary(trainer, method)
        if isinstance(callback, Evaluator) and trainer.state.fn == "test":
            how = callback.aggregations().items()
            metrics["aggregations"] = {name: one.to_json() for name, one in how}
    return found


def _truncated(method: Method) -> dict[str, int]:
    """Return how many texts each group's model was given that lost tokens, in all processes."""
    groups = method.groups()
    own = [int(getattr(group, "truncated", 0)) for group in groups.values()]
    counts = summed(torch.tensor(own, device=method.device)).tolist()
    return dict(zip(groups, counts, strict=True))


def _finite(estimates: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Json]]:
    """Return the figures with None for those that JSON has no number for."""
    return {
        phase: {name: value if math.isfinite(value) else None for name, value in figures.items()}
        for phase, figures in estimates.items()
    }


def commit() -> str:
    """Return the commit of the code, "+changes" behind it where the work tree differs, or ""."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""  # an installed package is no checkout


def machine() -> dict[str, Json]:
    """Return what the run ran on."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": list(gpus),
    }


def _metrics(trainer: Trainer, prefix: str) -> dict[str, Json]:
    return {
        name.removeprefix(prefix): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix)
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        log.warning("%s was damaged and is written anew", path)
        return {}
    return content if isinstance(content, dict) else {}

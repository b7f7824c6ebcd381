"""Searches settings on the validation split, by Optuna.

A trial is a run without a test, in the experiment `<name>-search`, whose variant says which
settings it has: settings that are proposed twice run once. Optuna's journal beside the trials
remembers what was proposed and how it went, so that a search goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.sweep.file import Local, Range, Search, Settings, SweepFile
from lightning_rag.sweep.plan import Commands, PlannedRun, Setting, expand, planned_run
from lightning_rag.sweep.state import read

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

Axis = Sequence[Json]

ON_CLUSTERS = 8  # settings that are proposed together where the number of processes is not known

Execute = Callable[[Sequence[PlannedRun]], set[str]]


class Study:
    """The search for one setting of a system.

    Args:
        file: the sweep.
        setting: what is searched for, with `system.search`.
        planned: all runs of the sweep, for what this one begins with.
        commands: parses the commands of trials.
    """

    def __init__(
        self,
        file: SweepFile,
        setting: Setting,
        planned: Mapping[str, PlannedRun],
        commands: Commands,
    ) -> None:
        assert setting.system.search is not None
        self.setting = setting
        self.search: Search = setting.system.search
        self._file = file
        self._planned = planned
        self._commands = commands
        self.seeds = self.search.seeds or (setting.system.seeds or file.seeds)[:1]
        self._given_up: set[int] = set()  # trials that have failed in this process
        self._check_seeds()
        base = planned[f"{setting.name}/seed={self.seeds[0]}"].configuration
        what = (base, self.search.metric, self.search.mode, self.seeds, self.search.space)
        self._identity = _digest(repr(what))  # another system or space is another study
        self._check_space()

    def open(self, storage: BaseStorage) -> None:
        """Find the trials that there are; others, if the system or the space was another."""
        import optuna

        self.study: optuna.Study = optuna.create_study(
            storage=storage,
            study_name=f"{self.setting.name}-{self._identity}",
            direction="maximize" if self.search.mode == "max" else "minimize",
            load_if_exists=True,
        )

    @property
    def trials(self) -> int:
        """Return how many settings are tried: of a grid at most all."""
        if self.search.sampler != "grid":
            return cast(int, self.search.trials)
        combinations = math.prod(len(cast(Axis, axis)) for axis in self.search.space.values())
        return min(combinations, self.search.trials or combinations)

    @property
    def done(self) -> int:
        """Return how many were."""
        return len(self._trials("COMPLETE"))

    @property
    def found(self) -> Settings | None:
        """Return the best settings so far; None = no trial has finished."""
        return self.settings(self.study.best_params) if self.done else None

    def ask(self) -> dict[int, Settings]:
        """Return the settings to be tried next, by number: those of interrupted trials first."""
        open_ = [t for t in self._trials("RUNNING") if t.number not in self._given_up]
        asked = {trial.number: self.settings(trial.params) for trial in open_}
        executor = self._file.executor
        processes = executor.processes if isinstance(executor, Local) else ON_CLUSTERS
        # FAIL is what Optuna calls a trial that ended without a number.
        left = self.trials - self.done - len(self._trials("RUNNING")) - len(self._trials("FAIL"))
        for _ in range(min(left, (self.search.at_once or processes) - len(asked))):
            self._propose()
            trial = self.study.ask(fixed_distributions=self._distributions())
            asked[trial.number] = self.settings(trial.params)
        return asked

    def runs(self, settings: Settings) -> list[PlannedRun]:
        """Return the runs of a trial, behind those that they begin with."""
        arguments = {**self.setting.arguments, **settings}
        name = f"{self.setting.name}-{_digest([self._identity, dict(settings)])}"
        tried = replace(self.setting, name=name, arguments=arguments)
        runs: list[PlannedRun] = []
        for seed in self.seeds:
            first = self._first(seed)
            runs += self._before(first)
            experiment = f"{self._file.name}-search"
            run = planned_run(self._commands, tried, seed, experiment, first)
            runs.append(replace(run, evaluate=False))
        return runs

    def tell(self, number: int, runs: Sequence[PlannedRun], finished: set[str]) -> None:
        """Take the result of a trial; one that failed is tried again by the next sweep.

        One that diverged, whose metric is no number, has been tried, and is never the best.
        """
        import optuna

        own = [run for run in runs if not run.evaluate]
        if any(run.name not in finished for run in own):
            self._given_up.add(number)
            return
        values = [self._value(run) for run in own]
        mean = sum(values) / len(values)
        if math.isfinite(mean):
            self.study.tell(number, mean)
        else:
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)

    def settings(self, params: Mapping[str, object]) -> Settings:
        """Return Optuna's parameters as settings: values of a list travel as JSON."""
        return {
            key: cast(Json, value)
            if isinstance(self.search.space[key], Range)
            else json.loads(str(value))
            for key, value in params.items()
        }

    def _own_seeds(self) -> tuple[int, ...]:
        return self.setting.system.seeds or self._file.seeds

    def _first(self, seed: int) -> PlannedRun | None:
        """Return what the run of a seed begins with."""
        after = self._planned[f"{self.setting.name}/seed={seed}"].after
        return self._planned[after[0]] if after else None

    def _before(self, run: PlannedRun | None) -> list[PlannedRun]:
        """Return a run behind those that it begins with."""
        if run is None:
            return []
        return [*(one for name in run.after for one in self._before(self._planned[name])), run]

    def _check_seeds(self) -> None:
        if missing := set(self.seeds) - set(self._own_seeds()):
            raise UserError(
                f"{self._file.path}: systems.{self.setting.system.name}.search.seeds: "
                f"{sorted(missing)} are not among the system's seeds {list(self._own_seeds())}"
            )

    def _check_space(self) -> None:
        """Parse a trial with every value of every list, and with both ends of every range."""
        values = {
            key: (space.low, space.high) if isinstance(space, Range) else space
            for key, space in self.search.space.items()
        }
        for index in range(max(len(listed) for listed in values.values())):
            tried = {key: listed[index % len(listed)] for key, listed in values.items()}
            self.runs(tried)

    def _value(self, run: PlannedRun) -> float:
        """Return the metric at the validation whose weights a trial has kept."""
        point = read(run.folder / "summary.json").get("validation")
        value = point.get(self.search.metric) if isinstance(point, Mapping) else None
        if not isinstance(value, int | float):
            known = sorted(point) if isinstance(point, Mapping) else []
            raise UserError(
                f"{self._file.path}: systems.{self.setting.system.name}.search.metric: the kept "
                f"validation of {run.folder} has no {self.search.metric!r}; legal: "
                f"{', '.join(known) or 'nothing: it never validated'}"
            )
        return float(value)

    def _trials(self, state: str) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self.study.trials if trial.state.name == state]

    def _propose(self) -> None:
        """Make the next proposal depend on the trials before it, not on interruptions."""
        from optuna.samplers import RandomSampler, TPESampler

        kind = TPESampler if self.search.sampler == "tpe" else RandomSampler
        self.study.sampler = kind(seed=len(self.study.trials))
        # Optuna's own sampler of grids does not go with trials that are asked for one by one.
        if self.search.sampler == "grid" and not self._trials("WAITING"):
            self.study.enqueue_trial(self._next_combination())

    def _next_combination(self) -> dict[str, str]:
        """Return the first combination of a grid that was not proposed yet."""
        proposed = [trial.params for trial in self.study.trials]
        axes = [[json.dumps(v) for v in cast(Axis, axis)] for axis in self.search.space.values()]
        combinations = (dict(zip(self.search.space, one, strict=True)) for one in product(*axes))
        return next(one for one in combinations if one not in proposed)

    def _distributions(self) -> dict[str, BaseDistribution]:
        return {key: _distribution(space) for key, space in self.search.space.items()}


def searched(file: SweepFile, planned: Sequence[PlannedRun], commands: Commands) -> list[Study]:
    """Return the searches of a sweep, with every command of their spaces parsed.

    Raises:
        UserError: a key or value of a space is illegal; a searched system begins with another one
            that is searched; Optuna is not installed.
    """
    settings = expand(file)
    own = [s for s in settings if s.system.search is not None and not s.system.cell]
    if not own:
        return []
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"{file.path}: search needs Optuna; install it: pip install 'lightning_rag[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    runs = {run.name: run for run in planned}
    waiting = {setting.name for setting in settings if setting.system.search is not None}
    for setting in own:
        for run in (one for one in planned if one.system == setting.name):
            before = run
            while before.after:
                before = runs[before.after[0]]
                if before.system in waiting:
                    raise UserError(
                        f"{file.path}: systems.{setting.system.name}: it is searched, and begins "
                        f"with {before.system}, which is searched too; legal: one of them"
                    )
    return [Study(file, setting, runs, commands) for setting in own]


def storage(file: SweepFile, runs: Path) -> BaseStorage:
    """Return where the trials of a sweep are remembered."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = journal(file, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def journal(file: SweepFile, runs: Path) -> Path:
    """Return the file of what was proposed and how it went."""
    return runs / f"{file.name}-search" / "optuna.journal"


def search(studies: Sequence[Study], execute: Execute) -> dict[str, Settings]:
    """Try settings until all trials are done or have failed; return the best, by `Setting.base`.

    Args:
        studies: what is searched, opened.
        execute: trains runs that are not finished yet; returns the names of those that are.
    """
    while True:
        rounds = [(study, n, study.runs(s)) for study in studies for n, s in study.ask().items()]
        if not rounds:
            break
        finished = execute([*{run.name: run for *_, runs in rounds for run in runs}.values()])
        for study, number, runs in rounds:
            study.tell(number, runs, finished)
    return {study.setting.name: best for study in studies if (best := study.found) is not None}


def _distribution(space: tuple[Json, ...] | Range) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not isinstance(space, Range):
        return CategoricalDistribution([json.dumps(value) for value in space])
    if all(isinstance(number, int | None) for number in (space.low, space.high, space.step)):
        step = 1 if space.step is None else int(space.step)
        return IntDistribution(int(space.low), int(space.high), log=space.log, step=step)
    return FloatDistribution(space.low, space.high, log=space.log, step=space.step)


def _digest(value: Json) -> str:
    """Return eight digits that stand for a value."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]

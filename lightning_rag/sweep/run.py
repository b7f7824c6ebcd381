"""A sweep from its file to finished runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from lightning_rag.errors import UserError
from lightning_rag.sweep.cost import Cost, estimate, finished, in_words
from lightning_rag.sweep.file import Cluster, Local, Settings, SweepFile
from lightning_rag.sweep.jobs import Executor, Job
from lightning_rag.sweep.local import LocalExecutor
from lightning_rag.sweep.plan import (
    Commands,
    PlannedRun,
    configuration_of_folder,
    plan,
    with_controls_of,
)
from lightning_rag.sweep.progress import Progress
from lightning_rag.sweep.search import Study, journal, search, searched, storage
from lightning_rag.sweep.state import Step, next_step


@dataclass
class Outcome:
    """What a sweep gave.

    Args:
        runs: all runs, without the trials of searches.
        finished: names of those that are finished.
        failed: by name, what did not finish, trials among them, with the reason.
    """

    runs: list[PlannedRun] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def compared(self) -> list[PlannedRun]:
        """Return the finished runs, each configuration once: of equal ones the first."""
        first: dict[str, PlannedRun] = {}
        for run in self.runs:
            if run.name in self.finished:
                first.setdefault(run.configuration, run)
        return [*first.values()]


class Sweep:
    """Runs what a sweep file asks for, and is not done yet.

    Args:
        file: the sweep.
        runs: the folder of all runs.
        extra: dotted keys that win over all of the file's, such as `data.root`.
        overwrite: whether runs with another configuration are replaced.
        out: where it says what it does.
    """

    def __init__(
        self,
        file: SweepFile,
        *,
        runs: Path,
        out: TextIO,
        extra: Settings | None = None,
        overwrite: bool = False,
    ) -> None:
        self.file = with_controls_of(file)
        self.runs = runs.resolve()
        self.extra = dict(extra or {})
        self.overwrite = overwrite
        self.out = out

    def plan(self, found: Mapping[str, Settings] | None = None) -> list[PlannedRun]:
        """Return all runs (see `plan`), but for the trials of searches."""
        return plan(self.file, runs=self.runs, extra=self.extra, found=found)

    def describe(self) -> None:
        """Say what would be done, and what it would cost by what finished runs have cost."""
        planned = self.plan()
        studies = self._studies(planned)
        found: dict[str, Settings] = {}
        for study in studies:
            there = journal(self.file, self.runs).exists()
            if there:
                study.open(storage(self.file, self.runs))
                found |= {study.setting.name: best} if (best := study.found) is not None else {}
            done = study.done if there else 0
            best_so_far = f", best so far: {found.get(study.setting.name)}" if done else ""
            name = study.setting.name
            self._say(f"search  {name}: {done} of {study.trials} trials done{best_so_far}")
        if found:
            planned = self.plan(found)
        self._tell_twins(planned)
        self._tell_costs(planned)
        if self.file.compare is not None:
            self._say("compare the finished runs")

    def run(self) -> Outcome:
        """Search, train and test what is not finished.

        Raises:
            UserError: a configuration is illegal; a run with another configuration is there; this
                sweep is being run already. Nothing is run then.
        """
        outcome = Outcome(planned := self.plan())
        studies = self._studies(planned)
        with _alone(self.runs / self.file.name / ".lock") as lock:
            executor = executor_of(self.file.executor, lock)
            searching = {study.setting.name for study in studies}
            settled = [run for run in planned if run.base not in searching]
            self._steps(settled)  # what must not be replaced is told before anything runs
            for study in studies:
                study.open(storage(self.file, self.runs))
            found = search(studies, lambda runs: self._execute(runs, executor, outcome))
            outcome.runs = self.plan(found) if found else planned
            self._tell_twins(outcome.runs)
            wanted = self._possible(outcome, searching - found.keys())
            outcome.finished = self._execute(wanted, executor, outcome)
        return outcome

    def _tell_twins(self, planned: Sequence[PlannedRun]) -> None:
        """Say which runs have the configuration of another: they are compared once."""
        first: dict[str, PlannedRun] = {}
        for run in planned:
            if (twin := first.setdefault(run.configuration, run)) is not run:
                self._say(f"note: {run.name} has the configuration of {twin.name}")

    def _studies(self, planned: Sequence[PlannedRun]) -> list[Study]:
        return searched(self.file, planned, Commands(self.file, self.runs, self.extra))

    def _possible(self, outcome: Outcome, lost: set[str]) -> list[PlannedRun]:
        """Return the runs without those whose search found nothing, and what begins with them."""
        for run in outcome.runs:
            if run.base in lost:
                outcome.failed[run.name] = "no trial of its search has finished"
            elif outcome.failed.keys() & set(run.after):
                outcome.failed[run.name] = f"{run.after[0]} did not finish"
        return [run for run in outcome.runs if run.name not in outcome.failed]

    def _tell_costs(self, planned: Sequence[PlannedRun]) -> None:
        steps, known = self._steps(planned, force=True), finished(self.runs)
        total, unknown, to_do = Cost(0.0, 0.0), 0, 0
        for run in planned:
            step, cost = steps[run.name], estimate(run, known)
            if step.kind in ("skip", "refuse"):
                self._say(f"{step.kind:<8}{run.name}{step.reason and ': '}{step.reason}")
                continue
            to_do += 1
            unknown += cost is None
            if cost is not None:
                total = Cost(total.seconds + cost.seconds, total.flops + cost.flops)
            self._say(f"{step.kind:<8}{run.name}: {in_words(cost)}")
        behind = f", and {unknown} of unknown cost" if unknown else ""
        self._say(f"{to_do} of {len(planned)} runs to do: {in_words(total)}{behind}")

    def _execute(
        self, planned: Sequence[PlannedRun], executor: Executor, outcome: Outcome
    ) -> set[str]:
        """Run what is left to do of some runs; return the names of those that are finished."""
        steps = self._steps(planned)
        done = {run.name for run in planned if steps[run.name].kind == "skip"}
        if done:
            self._say(f"{len(done)} of {len(planned)} runs are finished already")
        jobs = [
            Job(run.name, steps[run.name].words, run.folder, run.log, run.after)
            for run in planned
            if run.name not in done
        ]
        metric = self.file.compare.metric if self.file.compare is not None else None
        progress = Progress(jobs, self.out, metric or "")
        try:
            executor.run(jobs, progress.report)
        finally:
            progress.close()
        outcome.failed |= progress.failed
        return done | set(progress.finished)

    def _steps(self, planned: Sequence[PlannedRun], *, force: bool = False) -> dict[str, Step]:
        """Return what is left to do of each run.

        Raises:
            UserError: some of it is refused, and this is not forced.
        """
        by_name = {run.name: run for run in planned}
        steps: dict[str, Step] = {}
        renewed: set[str] = set()
        for run in planned:
            steps[run.name] = step = next_step(
                run,
                configuration_of_folder=configuration_of_folder,
                overwrite=self.overwrite,
                renewed=renewed,
                first=by_name.get(run.after[0]) if run.after else None,
            )
            if run.train and step.kind in ("run", "replace", "resume"):
                renewed.add(run.name)
        refused = [f"{name}: {step.reason}" for name, step in steps.items() if step.reason]
        if refused and not force:
            raise UserError(
                "\n".join(refused) + "\nlegal: --overwrite true to replace them, another name in "
                "the sweep file, or another --runs"
            )
        return steps

    def _say(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def executor_of(settings: Local | Cluster, lock: int) -> Executor:
    """Return what runs the jobs.

    Args:
        settings: the sweep file's.
        lock: an open file that local processes keep open.
    """
    if isinstance(settings, Local):
        return LocalExecutor(settings.processes, inherit=(lock,))
    # Here, because only they need Ray who have a cluster.
    from lightning_rag.sweep.ray import RayExecutor

    return RayExecutor(settings, inherit=(lock,))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Hold a lock; the runs' processes hold it too, should this one be killed before they end.

    Raises:
        UserError: another sweep, or a run that it has started, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{path.parent}: this sweep is being run already, or runs of one that was killed "
                "still go on; legal: wait until they have ended"
            ) from error
        yield lock
    finally:
        os.close(lock)

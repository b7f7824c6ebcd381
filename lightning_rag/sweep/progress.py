"""All runs of a sweep in one view: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO, cast

from tqdm.auto import tqdm  # type: ignore[import-untyped]

from lightning_rag.files import Json
from lightning_rag.sweep.cost import duration
from lightning_rag.sweep.jobs import Event, Job, tail
from lightning_rag.sweep.state import read

TELL_EVERY = 60.0  # seconds between two lines about what is running, where there is no terminal


class Progress:
    """Shows what becomes of jobs.

    On a terminal there is a bar of all jobs, and below it a line for each that runs, with the last
    point of its validation curve; elsewhere a line when a job starts and ends, and every minute one
    about those that run.

    Args:
        jobs: all of them.
        out: where it is written.
        metric: what is shown of validation and test; "" = what the task monitors, of the test.

    Attributes:
        failed: what did not finish, with the reason, in the order in which it happened.
        finished: names of the jobs that did.
    """

    def __init__(self, jobs: Sequence[Job], out: TextIO, metric: str = "") -> None:
        self.failed: dict[str, str] = {}
        self.finished: list[str] = []
        self._jobs = {job.name: job for job in jobs}
        self._out = out
        self._metric = metric
        self._lines: dict[str, tqdm] = {}  # a line of the terminal for each job that runs
        self._running: dict[str, str] = {}
        self._told = time.monotonic()
        self._terminal = out.isatty()
        self._bar = tqdm(
            total=len(jobs), file=out, disable=not self._terminal, unit="run", desc="runs"
        )

    def close(self) -> None:
        """Remove the bars; what was said stays."""
        for line in self._lines.values():
            line.close()
        self._bar.close()

    def report(self, event: Event) -> None:
        """Show an event."""
        if event.kind == "running":
            self._tell(event)
            return
        name, spent = event.job, duration(event.seconds)
        if event.kind == "started":
            words = self._jobs[name].words
            where = f" {event.reason}" if event.reason else ""
            self._say(
                f"{words[0]} {name}{where}{' (goes on)' if '--ckpt_path=last' in words else ''}"
            )
            self._running[name] = ""
            return
        self._over(name)
        if event.kind == "finished":
            self.finished.append(name)
            self._say(f"finished {name} in {spent}{self._figure(self._jobs[name])}")
            return
        self.failed[name] = event.reason
        self._say(f"{event.kind} {name}: {event.reason}")
        if event.kind == "failed":
            log = self._jobs[name].log
            self._say("".join(f"    {line}\n" for line in tail(log)) + f"    (all of it: {log})")

    def _say(self, text: str) -> None:
        if self._terminal:
            self._bar.write(text, file=self._out)
        else:
            print(text, file=self._out, flush=True)

    def _tell(self, event: Event) -> None:
        """Show how far a job is."""
        point = _last_validation(self._jobs[event.job], self._metric)
        text = f"{event.job}: {duration(event.seconds)}{', ' if point else ''}{point}"
        self._running[event.job] = text
        if self._terminal:
            if event.job not in self._lines:
                self._lines[event.job] = tqdm(file=self._out, bar_format="  {desc}", leave=False)
            self._lines[event.job].set_description_str(text)
        elif time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            shown = [text for text in self._running.values() if text]
            done = len(self.finished) + len(self.failed)
            self._say(f"{done} of {len(self._jobs)} done; running: {'; '.join(shown)}")

    def _over(self, name: str) -> None:
        self._running.pop(name, None)
        if name in self._lines:
            self._lines.pop(name).close()
        self._bar.update()

    def _figure(self, job: Job) -> str:
        """Return what a finished job's files say of its test, or of its validation."""
        metrics = read(job.folder / "metrics.json")
        told = read(job.folder / "summary.json").get("metrics")
        monitor = told.get("monitor") if isinstance(told, dict) else None
        name, test = self._metric or str(monitor), metrics.get("test")
        if isinstance(test, dict) and isinstance(value := test.get(name), float):
            return f": {name} {value:.4f}"
        point = _last_validation(job, self._metric)
        return f": {point}" if point else ""


def _last_validation(job: Job, metric: str) -> str:
    """Return the last point of a run's validation curve in words, "" if there is none."""
    curve = read(job.folder / "metrics.json").get("validation")
    if not isinstance(curve, list) or not curve:
        return ""
    point = cast(dict[str, Json], curve[-1])
    value = point.get(metric)
    figure = f", {metric} {value:.4f}" if isinstance(value, float) else ""
    return f"{point.get('phase')} step {point.get('step')}{figure}"

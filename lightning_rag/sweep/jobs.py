"""Jobs of a sweep: what an executor runs, what it tells, and how a job's process is started."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

HEAD = "$ python -m lightning_rag.cli "  # how a log says that a process began
STOP_SECONDS = 20.0  # that a process has to end by itself when it is interrupted


@dataclass(frozen=True)
class Job:
    """A command that is to be run.

    Args:
        name: unlike that of all other jobs.
        words: arguments of `python -m lightning_rag.cli`, the subcommand first.
        folder: the run's folder.
        log: file that what the process says is appended to.
        after: names of the jobs that must have finished before; those that are not given to the
            executor count as finished.
    """

    name: str
    words: tuple[str, ...]
    folder: Path
    log: Path
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """What became of a job.

    Args:
        job: its name.
        kind: `running` comes now and then between `started` and `finished` or `failed`; `blocked`
            says that it cannot run, for one that it comes after did not finish.
        seconds: since it was started.
        reason: why it failed or is blocked; where it was started.
    """

    job: str
    kind: Literal["started", "running", "finished", "failed", "blocked"]
    seconds: float = 0.0
    reason: str = ""


class Executor(Protocol):
    """Runs jobs, somewhere."""

    def run(self, jobs: Sequence[Job], report: Callable[[Event], None]) -> None:
        """Run jobs, each after those that it comes after, and return when none can be run any more.

        A job that fails is reported, and the others go on. When this is interrupted, by a
        KeyboardInterrupt or whatever else, all processes are ended before it is passed on.

        Args:
            jobs: what is run; earlier ones are started earlier.
            report: told what becomes of each job, in this thread.
        """


class Queue:
    """The jobs that wait, in order: which can be started, and which never can.

    Args:
        jobs: all of them.
    """

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._waiting = list(jobs)
        self._open = {job.name for job in self._waiting}  # not finished yet

    def take(self) -> Job | None:
        """Return the first job that waits for no other, and take it out; None = none such."""
        for job in self._waiting:
            if not self._open & set(job.after):
                self._waiting.remove(job)
                return job
        return None

    def finish(self, name: str) -> None:
        """Let those that come after a job start."""
        self._open.remove(name)

    def fail(self, name: str) -> list[Event]:
        """Give up those that come after a job, and those that come after these; return that."""
        blocked: list[Event] = []
        lost = [name]
        for first in lost:  # which grows
            for job in [job for job in self._waiting if first in job.after]:
                self._waiting.remove(job)
                lost.append(job.name)
                blocked.append(Event(job.name, "blocked", reason=f"{first} did not finish"))
        return blocked


def start(
    job: Job,
    *,
    threads: int,
    inherit: Sequence[int] = (),
    module: str = "lightning_rag.cli",
) -> subprocess.Popen[bytes]:
    """Start a job's process, in a group of its own: an interrupt of this one does not reach it.

    Args:
        job: what is run; its log's folder is made.
        threads: of its tensor operations, unless the environment says OMP_NUM_THREADS.
        inherit: open files that stay open as long as it lives.
        module: what is run with its words; another one than the command line ends in it.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        log.write(f"{HEAD}{shlex.join(job.words)}\n".encode())
        log.flush()
        return subprocess.Popen(
            [sys.executable, "-m", module, *job.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(threads), **os.environ},
            start_new_session=True,
            pass_fds=inherit,
        )


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt processes, and kill those that have not ended after `STOP_SECONDS`."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    limit = time.monotonic() + STOP_SECONDS
    try:
        for process in processes:
            process.wait(max(0.0, limit - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def ending(code: int) -> str:
    """Return in words how a process ended that did not succeed."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")


def tail(log: Path, lines: int = 20) -> list[str]:
    """Return the last lines of what a log's last process said."""
    try:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    starts = [index for index, line in enumerate(said) if line.startswith(HEAD)]
    return said[starts[-1] + 1 if starts else 0 :][-lines:]

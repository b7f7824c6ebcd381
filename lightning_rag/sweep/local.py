"""Runs the jobs of a sweep on this machine, a few at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from lightning_rag.sweep.jobs import Event, Executor, Job, Queue, ending, start, stop

POLL = 0.05  # seconds between two looks at the processes
TELL = 1.0  # seconds between two events of a running job


@dataclass
class _Running:
    """A job's process.

    Attributes:
        since: when it was started.
        told: when it was reported last.
    """

    job: Job
    process: subprocess.Popen[bytes]
    since: float
    told: float


class LocalExecutor(Executor):
    """Processes on this machine, which share its cores.

    Args:
        processes: jobs at a time.
        inherit: open files that stay open as long as any process lives.
    """

    def __init__(self, processes: int, inherit: Sequence[int] = ()) -> None:
        self.processes = processes
        self.threads = max(1, cores() // processes)
        self._inherit = tuple(inherit)

    def run(self, jobs: Sequence[Job], report: Callable[[Event], None]) -> None:
        """Run jobs, each after those that it comes after (see `Executor`)."""
        queue, running = Queue(jobs), list[_Running]()
        try:
            while True:
                while len(running) < self.processes and (job := queue.take()) is not None:
                    with uninterrupted():  # or a process might be left that nothing knows of
                        process = start(job, threads=self.threads, inherit=self._inherit)
                        now = time.monotonic()
                        running.append(_Running(job, process, now, now))
                    report(Event(job.name, "started"))
                if not running:
                    return
                time.sleep(POLL)
                running = [one for one in running if not self._ended(one, queue, report)]
        finally:
            stop([one.process for one in running])

    def _ended(self, one: _Running, queue: Queue, report: Callable[[Event], None]) -> bool:
        """Report what became of a job; return whether it is over."""
        code, now = one.process.poll(), time.monotonic()
        name, seconds = one.job.name, now - one.since
        if code is None:
            if now - one.told >= TELL:
                one.told = now
                report(Event(name, "running", seconds))
            return False
        if code == 0:
            queue.finish(name)
            report(Event(name, "finished", seconds))
            return True
        report(Event(name, "failed", seconds, ending(code)))
        for event in queue.fail(name):
            report(event)
        return True


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let requests to end wait until what happens inside is done; for the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.signal(n, lambda number, frame: caught.append(number)) for n in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for late in caught:
        signal.raise_signal(late)


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

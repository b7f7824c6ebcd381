"""The process of a sweep that talks to a Ray cluster: jobs as JSON in, events as lines of JSON out.

    python -m lightning_rag.sweep.ray_driver < jobs

The first line says that there is a cluster. It ends when no job can be run any more, when it is
interrupted, or when nobody reads what it says; then it ends all jobs before.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import ray
from ray import ObjectRefGenerator

from lightning_rag.sweep.file import Cluster
from lightning_rag.sweep.jobs import STOP_SECONDS, Event, Job, Queue, ending, start, stop

TELL = 1.0  # seconds between two events of a running job
PASSED_ON = "LIGHTNING_RAG_"  # variables of this environment that hold on all nodes


def carry_out(job: Job, folder: str, variables: Mapping[str, str]) -> Iterator[str | int]:
    """Run a job on the node that this is called on.

    Args:
        job: what is run.
        folder: the working directory, from which relative paths are meant.
        variables: of the environment, besides the node's.

    Yields:
        The node's name as soon as the job is started; then its exit code, minus the number of the
        signal that killed it.
    """
    os.chdir(folder)
    os.environ.update(variables)
    # Ray has set OMP_NUM_THREADS by the cores of the task.
    process = start(job, threads=1, module="lightning_rag.sweep.guard")
    try:
        yield socket.gethostname()
        yield process.wait()
    finally:
        stop([process])


@dataclass
class _Task:
    """A job that was handed to the cluster.

    Attributes:
        since: when it was started; None = it waits for a node.
        told: when it was reported last.
    """

    job: Job
    since: float | None = None
    told: float = 0.0

    def seconds(self) -> float:
        """Return for how long it has been running."""
        return 0.0 if self.since is None else time.monotonic() - self.since


class Driver:
    """Hands jobs to a cluster that this process is connected to, and tells what becomes of them.

    Args:
        settings: what a job needs.
        patience: seconds that jobs wait for a node while the cluster has none that could run them.
        out: where events go.
    """

    def __init__(self, settings: Cluster, patience: float, out: IO[str]) -> None:
        self.settings = settings
        self.patience = patience
        self._out = out
        self._tasks: dict[ObjectRefGenerator[Any], _Task] = {}
        self._possible = time.monotonic()  # when a node was last seen that could run a job

    def run(self, jobs: Sequence[Job]) -> None:
        """Run jobs, each after those that it comes after, until none can be run any more."""
        queue = Queue(jobs)
        try:
            while True:
                while (job := queue.take()) is not None:
                    self._submit(job)
                if not self._tasks:
                    return
                self._attend(queue)
        finally:
            self._cancel()

    def _submit(self, job: Job) -> None:
        # No second try: the sweep decides what is continued. The stream tells when it is started.
        options = ray.remote(
            num_cpus=self.settings.cpus,
            num_gpus=self.settings.gpus,
            max_retries=0,
            num_returns="streaming",
        )
        variables = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        stream = options(carry_out).remote(job, os.getcwd(), variables)
        self._tasks[stream] = _Task(job)

    def _attend(self, queue: Queue) -> None:
        """Wait for news, at most `TELL` seconds, and tell it."""
        ready = self._ready()
        for stream in ready:
            self._news(stream, queue)
        now = time.monotonic()
        for task in self._tasks.values():
            if task.since is not None and now - task.told >= TELL:
                task.told = now
                self._tell(Event(task.job.name, "running", task.seconds()))
        if not ready:
            self._give_up(queue)

    def _ready(self) -> list[ObjectRefGenerator[Any]]:
        """Return the first task with news, if there is one within `TELL` seconds."""
        ready, _ = ray.wait([*self._tasks], num_returns=1, timeout=TELL)
        return [stream for stream in ready if isinstance(stream, ObjectRefGenerator)]

    def _news(self, stream: ObjectRefGenerator[Any], queue: Queue) -> None:
        task = self._tasks[stream]
        try:
            said = ray.get(next(stream))
        except ray.exceptions.RayError as error:
            return self._failed(stream, _reason(error), queue)
        if isinstance(said, str):
            task.since = task.told = time.monotonic()
            return self._tell(Event(task.job.name, "started", reason=f"on {said}"))
        if said != 0:
            return self._failed(stream, ending(said), queue)
        del self._tasks[stream]
        queue.finish(task.job.name)
        return self._tell(Event(task.job.name, "finished", task.seconds()))

    def _failed(self, stream: ObjectRefGenerator[Any], reason: str, queue: Queue) -> None:
        task = self._tasks.pop(stream)
        self._tell(Event(task.job.name, "failed", task.seconds(), reason))
        for event in queue.fail(task.job.name):
            self._tell(event)

    def _give_up(self, queue: Queue) -> None:
        """Give up the jobs that wait for a node, if there has long been none that could run one."""
        needs = {"CPU": self.settings.cpus, "GPU": self.settings.gpus}
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            has = node["Resources"]
            if node["Alive"] and all(has.get(name, 0) >= need for name, need in needs.items()):
                self._possible = time.monotonic()
        if time.monotonic() - self._possible < self.patience:
            return
        reason = (
            f"no node of the cluster has had {self.settings.cpus:g} cores and "
            f"{self.settings.gpus:g} GPUs for {self.patience:g} s"
        )
        for stream in [stream for stream, task in self._tasks.items() if task.since is None]:
            ray.cancel(stream)
            self._failed(stream, reason, queue)

    def _cancel(self) -> None:
        """Kill what still runs, and wait for its end: a run goes on from its last checkpoint.

        Ray interrupts no task that streams; a worker that it kills takes its run along (`guard`).
        """
        for stream in self._tasks:
            ray.cancel(stream, force=True)
        limit = time.monotonic() + STOP_SECONDS
        while self._tasks and time.monotonic() < limit:
            for stream in self._ready():
                try:
                    ray.get(next(stream))
                except (ray.exceptions.RayError, StopIteration):
                    del self._tasks[stream]

    def _tell(self, event: Event) -> None:
        print(json.dumps(asdict(event)), file=self._out, flush=True)


def _reason(error: Exception) -> str:
    """Return the first sentence of what Ray says: the others are advice for all cases."""
    return " ".join(str(error).split()).partition(". ")[0]


def main() -> None:
    """Read jobs, run them, tell what becomes of them."""
    work = json.load(sys.stdin)
    settings = Cluster(**work["cluster"])
    jobs = [
        Job(
            **{
                **job,
                "words": tuple(job["words"]),
                "after": tuple(job["after"]),
                "folder": Path(job["folder"]),
                "log": Path(job["log"]),
            }
        )
        for job in work["jobs"]
    ]
    # Ray writes to standard output too: what is meant for the sweep gets a channel of its own.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
        print("{}", file=out, flush=True)  # connected
        Driver(settings, work["patience"], out).run(jobs)
        ray.shutdown()


if __name__ == "__main__":
    main()

"""Runs the jobs of a sweep on the machines of a Ray cluster (extra `cluster`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import IO

from lightning_rag.errors import UserError
from lightning_rag.sweep.file import Cluster
from lightning_rag.sweep.jobs import Event, Executor, Job, ending, stop

PATIENCE = 120.0  # seconds


class RayExecutor(Executor):
    """A task of the cluster for each job; Ray finds a node that has the cores and GPUs for it.

    All nodes need this package, and a file system on which runs, configurations and data have the
    same paths. A node that goes away takes the jobs on it along: they are reported as failed, the
    others go on, and the same sweep, given again, continues them from their last checkpoints.

    Ray ends a process that has lost its cluster. So the one that talks to it is a child of this one
    (`ray_driver`), which tells by lines of JSON what becomes of the jobs. When the cluster goes
    away as a whole, its nodes end their jobs within a minute or so: wait that long before the sweep
    is given again.

    Args:
        settings: which cluster, and what a job needs.
        inherit: open files that stay open as long as jobs are looked after.
        patience: seconds that jobs wait for a node while the cluster has none that could run them.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(
        self, settings: Cluster, inherit: Sequence[int] = (), patience: float = PATIENCE
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise UserError(
                "executor: kind: ray needs Ray; legal: pip install -c constraints.txt "
                '-e ".[cpu,cluster]", or kind: local'
            )
        self.settings = settings
        self.patience = patience
        self._inherit = tuple(inherit)

    def run(self, jobs: Sequence[Job], report: Callable[[Event], None]) -> None:
        """Run jobs, each after those that it comes after (see `Executor`).

        Raises:
            UserError: there is no cluster at the address.
        """
        if not jobs:
            return
        left = {job.name: False for job in jobs}  # whether they were started
        connected = False
        with tempfile.TemporaryFile() as said:
            driver = subprocess.Popen(
                [sys.executable, "-m", "lightning_rag.sweep.ray_driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                pass_fds=self._inherit,
            )
            try:
                self._hand_over(driver, jobs)
                for line in driver.stdout or ():
                    if not connected:  # the first line says no more than that
                        connected = True
                        continue
                    event = Event(**json.loads(line))
                    left[event.job] = True
                    if event.kind in ("finished", "failed", "blocked"):
                        del left[event.job]
                    report(event)
                code = driver.wait()
            finally:
                stop([driver])
                if driver.stdout is not None:
                    driver.stdout.close()
            last = _last(said, code)
        if not connected:
            raise UserError(
                f"executor: there is no Ray cluster at address {self.settings.address!r} ({last}); "
                "legal: the address of one, auto (`ray start --head` on this machine), or local"
            )
        for name, started in left.items():
            reason = f"the Ray cluster went away ({last})"
            report(Event(name, "failed" if started else "blocked", reason=reason))

    def _hand_over(self, driver: subprocess.Popen[bytes], jobs: Sequence[Job]) -> None:
        """Tell the driver what to run. One that has ended already says why by itself."""
        work = {
            "cluster": asdict(self.settings),
            "patience": self.patience,
            "jobs": [asdict(job) for job in jobs],
        }
        with contextlib.suppress(BrokenPipeError):
            if driver.stdin is not None:
                driver.stdin.write(json.dumps(work, default=str).encode())
                driver.stdin.close()


def _last(said: IO[bytes], code: int) -> str:
    """Return how a process ended, and the first sentence of the last line that it said."""
    said.seek(0)
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines()]
    spoken = [line.rpartition("] ")[2].partition(". ")[0] for line in lines if line]
    return ": ".join([ending(code), *spoken[-1:]])

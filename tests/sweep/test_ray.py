"""The Ray executor, on clusters of processes of this machine: nodes that die, clusters that vanish.

What the jobs do is said by their words, to a stand-in for the interpreter: `sleep 3`, `exit 2`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_rag.errors import UserError
from lightning_rag.sweep.file import Cluster
from lightning_rag.sweep.jobs import HEAD, Event, Job
from lightning_rag.sweep.ray import RayExecutor

pytestmark = [
    pytest.mark.slow,
    # Ray's nodes are stopped without closing their files.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STAND_IN = """#!{python} -IS
import os, sys, time
print("pid", os.getpid(), flush=True)
word, value = sys.argv[-2:]
if word == "sleep":
    time.sleep(float(value))
elif word == "variable":
    print(os.environ.get(value), os.getcwd(), os.environ["OMP_NUM_THREADS"])
else:
    sys.exit(int(value))
"""
# Read by every Python of the nodes when it starts; only the guard becomes another program.
SITE = """
import sys
if "lightning_rag.sweep.guard" in sys.orig_argv:
    sys.executable = {script!r}
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The environment in which nodes are started."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: the extra cluster")
    if sys.platform != "linux":
        pytest.skip("the death of a worker reaches its run on Linux only")
    folder = tmp_path_factory.mktemp("site")
    script = folder / "python"
    script.write_text(STAND_IN.format(python=sys.executable))
    script.chmod(0o755)
    (folder / "sitecustomize.py").write_text(SITE.format(script=str(script)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *sys.path]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


def started(**head: int) -> Any:
    """A cluster of one node; the machine may be too busy for Ray's own limits of time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster as Nodes
    try:
        return Nodes(initialize_head=True, head_node_args={"include_dashboard": False, **head})
    except Exception as error:  # Ray raises a plain one
        pytest.skip(f"Ray's node did not start: {error}")


@pytest.fixture(scope="module")
def nodes(stand_in: None) -> Iterator[Any]:
    """Two nodes of a core each, beside a head that runs nothing."""
    cluster = started(num_cpus=0)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


class Told:
    """What an executor reports, with what is to happen when a job starts."""

    def __init__(self, when: dict[str, Callable[[], None]] | None = None) -> None:
        self.events: list[Event] = []
        self.when = when or {}

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "started" and event.job in self.when:
            self.when[event.job]()

    def of(self, job: str) -> list[str]:
        """The kinds of a job's events, without how long it has been running."""
        return [e.kind for e in self.events if e.job == job and e.kind != "running"]

    def reason(self, job: str) -> str:
        """Why a job did not finish."""
        return [event.reason for event in self.events if event.job == job][-1]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Make a job of two words."""

    def make(name: str, words: str, *after: str) -> Job:
        return Job(
            name, tuple(words.split()), tmp_path / name, tmp_path / "logs" / f"{name}.log", after
        )

    return make


def alive(job: Job) -> bool:
    """Whether the job's process is still there; one that was killed at once has said nothing."""
    said = job.log.read_text().splitlines()
    pid = next((line.split()[1] for line in said if line.startswith("pid ")), None)
    if pid is None:
        return False
    status = Path("/proc", pid, "status")
    return status.exists() and "State:\tZ" not in status.read_text()


def ends(job: Job, seconds: float = 60.0) -> bool:
    """Whether the job's process ends within some time."""
    limit = time.monotonic() + seconds
    while alive(job) and time.monotonic() < limit:
        time.sleep(0.2)
    return not alive(job)


def test_jobs_run_side_by_side_and_after_each_other(nodes: Any, job: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("LIGHTNING_RAG_TRIED", "passed on")
    told = Told()
    jobs = [
        job("one", "sleep 3"),
        job("other", "sleep 3"),
        job("bad", "exit 3"),
        job("after", "variable LIGHTNING_RAG_TRIED", "one"),
        job("never", "sleep 0", "bad"),
        job("neither", "sleep 0", "never"),
    ]
    RayExecutor(Cluster(nodes.address)).run(jobs, told)
    for name in ("one", "other", "after"):
        assert told.of(name) == ["started", "finished"]
    assert told.of("bad") == ["started", "failed"]
    assert told.reason("bad") == "exit code 3"
    assert told.of("never") == told.of("neither") == ["blocked"]
    assert told.reason("never") == "bad did not finish"
    order = [(event.job, event.kind) for event in told.events]
    both = {order.index(("one", "started")), order.index(("other", "started"))}
    assert max(both) < order.index(("one", "finished")) < order.index(("after", "started"))
    said = jobs[3].log.read_text().splitlines()
    assert said[0] == f"{HEAD}variable LIGHTNING_RAG_TRIED"
    assert said[2] == f"passed on {Path.cwd()} 1"
    assert any(event.kind == "running" and event.seconds > 0.5 for event in told.events)


def test_a_node_that_dies_takes_its_job_along_and_no_other(nodes: Any, job: Any) -> None:
    """The job that needs two cores can only be on the node that dies."""
    doomed = nodes.add_node(num_cpus=2)

    def die() -> None:
        threading.Thread(
            target=nodes.remove_node, args=(doomed,), kwargs={"allow_graceful": False}
        ).start()

    told = Told({"lost": die})
    lost, blocked = job("lost", "sleep 300"), job("blocked", "sleep 0", "lost")
    small = Told()
    beside = threading.Thread(
        target=RayExecutor(Cluster(nodes.address)).run, args=([job("small", "sleep 5")], small)
    )
    beside.start()
    RayExecutor(Cluster(nodes.address, cpus=2)).run([lost, blocked], told)
    assert told.of("lost") == ["started", "failed"]
    assert "node" in told.reason("lost") or "SIGKILL" in told.reason("lost")
    assert told.of("blocked") == ["blocked"]
    assert ends(lost)
    beside.join()
    assert small.of("small") == ["started", "finished"]


def test_an_interrupt_ends_all_jobs(nodes: Any, job: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    first, waiting = job("first", "sleep 300"), job("waiting", "sleep 300", "first")
    told = Told({"first": interrupt})
    with pytest.raises(KeyboardInterrupt):
        RayExecutor(Cluster(nodes.address)).run([first, waiting], told)
    assert told.of("waiting") == []
    assert ends(first)
    assert not waiting.log.exists()


def test_a_job_that_no_node_can_run(nodes: Any, job: Any) -> None:
    told = Told()
    jobs = [job("large", "sleep 0"), job("after", "sleep 0", "large")]
    RayExecutor(Cluster(nodes.address, cpus=1, gpus=1), patience=2.0).run(jobs, told)
    assert told.of("large") == ["failed"]
    assert told.reason("large") == "no node of the cluster has had 1 cores and 1 GPUs for 2 s"
    assert told.of("after") == ["blocked"]


def test_a_cluster_that_goes_away(stand_in: None, job: Any) -> None:
    """What has finished stays so; what has not is told, and this process lives on."""
    cluster = started(num_cpus=1)
    try:
        told = Told({"lost": cluster.head_node.kill_gcs_server})
        lost = job("lost", "sleep 300", "done")
        jobs = [job("done", "sleep 0"), lost, job("after", "sleep 0", "lost")]
        RayExecutor(Cluster(cluster.address)).run(jobs, told)
    finally:
        cluster.shutdown()
    assert told.of("done") == ["started", "finished"]
    assert told.of("lost") == ["started", "failed"]
    assert told.reason("lost").startswith("the Ray cluster went away (")
    assert "Failed to connect to GCS" in told.reason("lost")
    assert told.of("after") == ["blocked"]
    assert ends(lost)


def test_no_cluster(stand_in: None, job: Any) -> None:
    with pytest.raises(UserError, match=r"no Ray cluster at address '127.0.0.1:1' \(.*\); legal: "):
        RayExecutor(Cluster("127.0.0.1:1")).run([job("one", "sleep 0")], Told())


def test_nothing_to_run_needs_no_cluster() -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: the extra cluster")
    RayExecutor(Cluster("127.0.0.1:1")).run([], Told())


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs Ray; legal: pip install .*cluster.*kind: local"):
        RayExecutor(Cluster())

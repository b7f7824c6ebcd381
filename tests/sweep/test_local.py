"""Jobs in processes on this machine: order, number at a time, failures, interruption, logs."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_rag.sweep.jobs import Event, Job, Queue, ending, tail
from lightning_rag.sweep.local import LocalExecutor, cores, uninterrupted

MakeJob = Callable[..., Job]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    """Make a job of a shell command: the interpreter passes it on."""
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\nshift 2\nexec sh -c "$1"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr("lightning_rag.sweep.jobs.sys.executable", str(script))

    def make(name: str, command: str = "true", after: tuple[str, ...] = ()) -> Job:
        folder = tmp_path / "runs" / name
        return Job(name, (command,), folder, folder.with_name(f"{name}.log"), after)

    return make


def run(executor: LocalExecutor, *jobs: Job) -> list[Event]:
    events: list[Event] = []
    executor.run(jobs, events.append)
    return events


def kinds(events: list[Event]) -> dict[str, str]:
    """What became of each job in the end."""
    return {event.job: event.kind for event in events}


def order(events: list[Event], kind: str) -> list[str]:
    return [event.job for event in events if event.kind == kind]


def test_all_are_run_in_order(job: MakeJob) -> None:
    events = run(LocalExecutor(1), job("a"), job("b"), job("c"))
    assert [(event.job, event.kind) for event in events] == [
        (name, kind) for name in "abc" for kind in ("started", "finished")
    ]


def test_no_jobs() -> None:
    assert run(LocalExecutor(2)) == []


def test_each_comes_after_what_it_needs(job: MakeJob, tmp_path: Path) -> None:
    first = job("first", f"sleep 0.2; touch {tmp_path}/made")
    second = job("second", f"test -e {tmp_path}/made", after=("first", "finished before"))
    events = run(LocalExecutor(4), second, first, job("other"))
    assert kinds(events) == {"first": "finished", "second": "finished", "other": "finished"}
    assert order(events, "started") == ["first", "other", "second"]


def test_so_many_at_a_time(job: MakeJob, tmp_path: Path) -> None:
    """Each job notes how many there are while it runs."""
    command = f"touch {tmp_path}/on-$$; ls {tmp_path} | grep -c on- >> {tmp_path}/counts; "
    command += f"sleep 0.2; rm {tmp_path}/on-$$"
    run(LocalExecutor(2), *(job(f"j{i}", command) for i in range(5)))
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 5
    assert max(counts) == 2


def test_threads_are_divided(job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"echo $OMP_NUM_THREADS >> {tmp_path}/threads"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("lightning_rag.sweep.local.cores", lambda: 7)
    run(LocalExecutor(3), job("a", command))
    run(LocalExecutor(9), job("b", command))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    run(LocalExecutor(3), job("c", command))
    assert (tmp_path / "threads").read_text().split() == ["2", "1", "5"]
    assert cores() >= 1


class TestFailures:
    def test_the_others_go_on(self, job: MakeJob) -> None:
        jobs = [job("bad", "exit 3"), job("good"), job("worse", "kill -9 $$")]
        events = run(LocalExecutor(1), *jobs)
        assert kinds(events) == {"bad": "failed", "good": "finished", "worse": "failed"}
        reasons = {event.job: event.reason for event in events if event.kind == "failed"}
        assert reasons == {"bad": "exit code 3", "worse": "killed by SIGKILL (out of memory?)"}

    def test_what_comes_after_is_not_run(self, job: MakeJob, tmp_path: Path) -> None:
        marker = tmp_path / "ran"
        jobs = [
            job("bad", "exit 1"),
            job("next", f"touch {marker}", after=("bad",)),
            job("next but one", f"touch {marker}", after=("next",)),
            job("good"),
        ]
        events = run(LocalExecutor(2), *jobs)
        blocked = {event.job: event.reason for event in events if event.kind == "blocked"}
        assert blocked == {
            "next": "bad did not finish",
            "next but one": "next did not finish",
        }
        assert kinds(events)["good"] == "finished"
        assert not marker.exists()

    def test_endings(self) -> None:
        assert ending(2) == "exit code 2"
        assert ending(-signal.SIGTERM) == "killed by SIGTERM"
        assert ending(-200) == "killed by signal 200"


class TestInterruption:
    def test_it_waits_for_the_start_of_a_process(self) -> None:
        done = []
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            done += [os.kill(os.getpid(), signal.SIGINT), "more"]
        assert done == [None, "more"]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_all_processes_are_ended(self, job: MakeJob, tmp_path: Path) -> None:
        """Ctrl-C, while two jobs run and one waits."""
        command = f"echo $$ > {tmp_path}/$$.pid; exec sleep 60"
        jobs = [job("a", command), job("b", command), job("waits", command)]

        def interrupt() -> None:
            while len(list(tmp_path.glob("*.pid"))) < 2:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            run(LocalExecutor(2), *jobs)
        assert time.monotonic() - began < 10
        processes = [int(path.stem) for path in tmp_path.glob("*.pid")]
        assert len(processes) == 2
        for process in processes:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)

    def test_one_that_will_not_end_is_killed(
        self, job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lightning_rag.sweep.jobs.STOP_SECONDS", 0.3)
        command = f"trap '' INT; echo $$ > {tmp_path}/a.pid; while true; do sleep 0.05; done"

        def report(event: Event) -> None:
            while not (tmp_path / "a.pid").exists():
                time.sleep(0.02)
            raise RuntimeError("what it is told with fails")

        with pytest.raises(RuntimeError, match="fails"):
            LocalExecutor(1).run([job("a", command)], report)
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "a.pid").read_text()), 0)


class TestLogs:
    def test_what_a_process_says_is_kept(self, job: MakeJob) -> None:
        one = job("a", "echo out; echo error >&2")
        run(LocalExecutor(1), one)
        assert one.log.read_text().splitlines() == [
            "$ python -m lightning_rag.cli 'echo out; echo error >&2'",
            "out",
            "error",
        ]

    def test_the_end_is_that_of_the_last_process(self, job: MakeJob) -> None:
        run(LocalExecutor(1), job("a", "seq 1 30"))
        one = job("a", "seq 101 105; exit 1")
        run(LocalExecutor(1), one)
        assert tail(one.log) == ["101", "102", "103", "104", "105"]
        assert tail(one.log, 2) == ["104", "105"]
        assert "30" in one.log.read_text().splitlines()

    def test_no_log(self, tmp_path: Path) -> None:
        assert tail(tmp_path / "none.log") == []

    def test_a_log_that_is_no_text(self, tmp_path: Path) -> None:
        log = tmp_path / "a.log"
        log.write_bytes(b"\xff\xfe\nend\n")
        assert tail(log)[-1] == "end"


def test_a_running_job_is_told_of(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_rag.sweep.local.TELL", 0.1)
    events = run(LocalExecutor(1), job("a", "sleep 0.5"))
    told = [event.seconds for event in events if event.kind == "running"]
    assert len(told) >= 2
    assert told == sorted(told)


def test_an_inherited_file_stays_open(job: MakeJob, tmp_path: Path) -> None:
    read, write = os.pipe()
    run(LocalExecutor(1, inherit=(write,)), job("a", f"echo hello > /dev/fd/{write}"))
    os.close(write)
    assert os.read(read, 99) == b"hello\n"
    os.close(read)


def test_a_queue_hands_out_each_job_once(job: MakeJob) -> None:
    queue = Queue([job("a"), job("b", after=("a",))])
    first = queue.take()
    assert first is not None
    assert first.name == "a"
    assert queue.take() is None
    queue.finish("a")
    second = queue.take()
    assert second is not None
    assert second.name == "b"
    assert queue.take() is None

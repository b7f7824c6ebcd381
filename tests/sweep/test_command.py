"""`sweep FILE`: the whole of it with runs that train nothing, and once with real ones."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from lightning_rag import cli
from lightning_rag.errors import DataError
from lightning_rag.sweep.file import load
from lightning_rag.sweep.plan import PlannedRun, plan

Write = Callable[..., Path]
Sweep = Callable[..., int]


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path, dict]]:
    """What was given to the comparison, which does nothing."""
    calls: list[tuple[list[str], Path, dict]] = []

    def compare(paths: Sequence[Path], output: Path, **settings: object) -> None:
        calls.append(([f"{p.parent.name}/{p.name}" for p in paths], output, settings))

    monkeypatch.setattr("lightning_rag.comparison.compare.compare", compare)
    return calls


@pytest.fixture
def sweep(tmp_path: Path, write: Write, stand_in, compared) -> Sweep:
    """Write a sweep file, let the stand-in know its runs, and run it; return the exit code."""

    def start(*words: str, given: dict | None = None, **keys: object) -> int:
        path = write(**keys)
        extra = given or {}
        start.runs = {  # type: ignore[attr-defined]
            run.name: run for run in plan(load(path), runs=tmp_path / "runs", extra=extra)
        }
        stand_in.knows([*start.runs.values()])  # type: ignore[attr-defined]
        for prepare in start.prepare:  # type: ignore[attr-defined]
            prepare(start.runs)  # type: ignore[attr-defined]
        start.prepare = []  # type: ignore[attr-defined]
        return cli.main(["sweep", str(path), f"--runs={tmp_path / 'runs'}", *words])

    start.prepare = []  # type: ignore[attr-defined]
    return start


def commands(stand_in) -> list[tuple[str, str]]:
    return [(name, words[0]) for name, words in stand_in.calls()]


@pytest.mark.usefixtures("unparsed")
class TestRuns:
    def test_all_are_run_and_compared(
        self, sweep: Sweep, stand_in, compared, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert sweep(seeds=[0, 1], compare={"metric": "accuracy", "resamples": 9}) == 0
        names = [f"{name}/seed={seed}" for name in ("no_retrieval", "rag4re") for seed in (0, 1)]
        assert commands(stand_in) == [(name, "fit") for name in names]
        ((folders, output, settings),) = compared
        assert folders == names
        assert output == tmp_path / "runs" / "tried" / "comparison"
        assert settings == {
            "metric": "accuracy",
            "resamples": 9,
            "confidence": 0.95,
            "seed": 0,
            "examples": 20,
        }
        said = capsys.readouterr().out
        assert "finished rag4re/seed=1 in 0 s: accuracy 0.5000" in said
        assert "4 of 4 runs are finished" in said

    def test_finished_ones_are_skipped(
        self, sweep: Sweep, stand_in, compared, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sweep() == 0
        stand_in.forget()
        assert sweep(seeds=[0, 1]) == 0
        assert commands(stand_in) == [("no_retrieval/seed=1", "fit"), ("rag4re/seed=1", "fit")]
        assert len(compared[1][0]) == 4
        assert "2 of 4 runs are finished already" in capsys.readouterr().out

    def test_what_they_begin_with_is_run_before(self, sweep: Sweep, stand_in, system) -> None:
        systems = {
            "swapped": system(begin_with="first", train=False),
            "first": system(),
            "untrained": system(train=False),
        }
        assert sweep("--processes=2", systems=systems) == 0
        assert sorted(commands(stand_in)) == [
            ("first/seed=0", "fit"),
            ("swapped/seed=0", "test"),
            ("untrained/seed=0", "test"),
        ]
        assert commands(stand_in)[-1][0] == "swapped/seed=0"

    def test_the_command_line_wins(self, sweep: Sweep, stand_in, system) -> None:
        words = ("--set", "model.k=2", "data.batch_size=4", "--set=model.epochs=3")
        extra = {"data.root": "/d", "model.k": "2", "data.batch_size": "4", "model.epochs": "3"}
        assert sweep(*words, "--data.root=/d", given=extra, systems={"a": system()}) == 0
        ((_, run),) = stand_in.calls()
        for word in ("--model.k=2", "--data.batch_size=4", "--data.root=/d", "--model.epochs=3"):
            assert run.count(word) == 1

    def test_each_data_set_and_share_has_its_comparison(
        self, sweep: Sweep, system, compared
    ) -> None:
        systems = {"a": system(), "b": system(arguments={"model.k": 2, "model.epochs": 1})}
        assert sweep(systems=systems, grid={"data.fraction": [0.5, 1]}) == 0
        found = {output.name: folders for folders, output, _ in compared}
        assert found == {
            "synthetic_relations-fraction=0.5": ["a-fraction=0.5/seed=0", "b-fraction=0.5/seed=0"],
            "synthetic_relations-fraction=1": ["a-fraction=1/seed=0", "b-fraction=1/seed=0"],
        }

    def test_equal_configurations_are_compared_once(
        self, sweep: Sweep, system, compared, capsys: pytest.CaptureFixture[str]
    ) -> None:
        other = system(arguments={"model.epochs": 2})
        systems = {"a": system(), "b": system(), "c": other}
        assert sweep(systems=systems) == 0
        assert "note: b/seed=0 has the configuration of a/seed=0" in capsys.readouterr().out
        assert compared[0][0] == ["a/seed=0", "c/seed=0"]

    def test_no_comparison(self, sweep: Sweep, system, compared) -> None:
        assert sweep(systems={"a": system()}, compare=False) == 0
        assert compared == []

    def test_a_comparison_that_cannot_be_made(
        self,
        sweep: Sweep,
        system,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        def compare(paths: object, output: object, **settings: object) -> None:
            raise DataError("they do not belong together")

        monkeypatch.setattr("lightning_rag.comparison.compare.compare", compare)
        assert sweep(systems={"a": system()}) == 1
        assert "error: compare: they do not belong together" in capsys.readouterr().err


@pytest.mark.usefixtures("unparsed")
class TestFailures:
    def test_it_is_told_with_the_end_of_its_log_while_the_others_go_on(
        self, sweep: Sweep, stand_in, compared, system, capsys: pytest.CaptureFixture[str]
    ) -> None:
        systems = {
            "dies": system(),
            "then": system(begin_with="dies"),
            "fails": system(arguments={"model.k": 2, "model.epochs": 1}),
            "good": system(arguments={"model.k": 3, "model.epochs": 1}),
        }

        def prepare(runs: dict[str, PlannedRun]) -> None:
            stand_in.let(runs["dies/seed=0"], signal=int(signal.SIGKILL), lines=30)
            stand_in.let(runs["fails/seed=0"], exit=2)

        sweep.prepare = [prepare]  # type: ignore[attr-defined]
        assert sweep(systems=systems) == 1
        said = capsys.readouterr().out
        assert "failed dies/seed=0: killed by SIGKILL (out of memory?)" in said
        lines = [line.strip() for line in said.splitlines()]
        assert [line for line in lines if line.startswith("line ")] == [
            f"line {number}" for number in range(10, 30)
        ]
        assert "blocked then/seed=0: dies/seed=0 did not finish" in said
        assert "failed fails/seed=0: exit code 2" in said
        assert "1 of 4 runs are finished" in said
        assert "not finished: then/seed=0: dies/seed=0 did not finish" in said
        assert [folders for folders, *_ in compared] == [["good/seed=0"]]

    def test_given_again_it_goes_on(self, sweep: Sweep, stand_in, system) -> None:
        systems = {"dies": system(), "then": system(begin_with="dies")}
        sweep.prepare = [lambda runs: stand_in.let(runs["dies/seed=0"], exit=1)]  # type: ignore[attr-defined]
        assert sweep(systems=systems) == 1
        sweep.prepare = [lambda runs: stand_in.let(runs["dies/seed=0"], exit=0)]  # type: ignore[attr-defined]
        assert sweep(systems=systems) == 0
        assert [name for name, _ in commands(stand_in)] == [
            *("dies/seed=0", "dies/seed=0", "then/seed=0")
        ]


class TestRefusals:
    """Before anything runs."""

    @pytest.mark.usefixtures("unparsed")
    def test_a_finished_run_with_another_configuration(
        self, sweep: Sweep, stand_in, system, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sweep(systems={"a": system()}) == 0
        stand_in.forget()
        other = {"a": system(arguments={"model.epochs": 2}), "b": system()}
        assert sweep(systems=other) == 1
        message = capsys.readouterr().err
        assert "a/seed=0: " in message
        assert "holds a run with another configuration" in message
        assert "--overwrite true" in message
        assert stand_in.calls() == []
        assert sweep("--overwrite=true", systems=other) == 0
        calls = dict(stand_in.calls())
        assert calls["a/seed=0"][-1] == "--overwrite=true"
        assert calls["b/seed=0"][-1] != "--overwrite=true"

    def test_a_misspelt_key_of_a_configuration(
        self, write: Write, system, stand_in, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        systems = {"a": system(), "b": system(arguments={"model.epoch": 1})}
        path = write(systems=systems)
        for words in ([], ["--dry_run"]):
            assert cli.main(["sweep", str(path), f"--runs={tmp_path / 'runs'}", *words]) == 1
            message = capsys.readouterr().err
            assert f"{path}: systems.b: " in message
            assert "Option 'epoch' is not accepted" in message
        assert stand_in.calls() == []
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--set", "model.k"], "--set model.k: expected key=value"),
            (["--set", "seed_everything=3"], "--set.seed_everything: cannot be given here"),
            (["--processes=0"], "--processes is 0; legal: 1 or more"),
        ],
    )
    def test_arguments(
        self, write: Write, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        assert cli.main(["sweep", str(write()), *words]) == 1
        assert message in capsys.readouterr().err

    def test_processes_of_a_cluster(self, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
        path = write(executor={"kind": "ray"})
        assert cli.main(["sweep", str(path), "--processes=2"]) == 1
        assert "asks for a cluster" in capsys.readouterr().err

    def test_a_misspelt_argument(self, write: Write) -> None:
        with pytest.raises(SystemExit) as stop:
            cli.main(["sweep", str(write()), "--proceses=2"])
        assert stop.value.code == 2

    @pytest.mark.usefixtures("unparsed")
    def test_the_same_sweep_twice_at_a_time(
        self, sweep: Sweep, stand_in, system, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "runs" / "tried"
        folder.mkdir(parents=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sweep(systems={"a": system()}) == 1
        assert "this sweep is being run already" in capsys.readouterr().err
        assert stand_in.calls() == []
        assert sweep(systems={"a": system()}) == 0


@pytest.mark.usefixtures("unparsed")
class TestInterruption:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_all_runs_are_ended_and_the_next_goes_on(
        self,
        sweep: Sweep,
        stand_in,
        system,
        compared,
        capsys: pytest.CaptureFixture[str],
        number: int,
    ) -> None:
        systems = {"quick": system(), "slow": system(arguments={"model.epochs": 2})}
        sweep.prepare = [lambda runs: stand_in.let(runs["slow/seed=0"], sleep=60)]  # type: ignore[attr-defined]
        folder = stand_in.calls_file.parent

        def interrupt() -> None:
            while not [*folder.glob("calls.jsonl.*")]:
                time.sleep(0.02)
            os.kill(os.getpid(), number)

        before = signal.getsignal(signal.SIGTERM)
        threading.Thread(target=interrupt).start()
        assert sweep(systems=systems) == 130
        (pid,) = folder.glob("calls.jsonl.*")
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.suffix[1:]), 0)
        assert "the same command goes on" in capsys.readouterr().err
        assert compared == []
        assert signal.getsignal(signal.SIGTERM) is before
        stand_in.forget()
        sweep.prepare = [lambda runs: stand_in.let(runs["slow/seed=0"], sleep=0)]  # type: ignore[attr-defined]
        assert sweep(systems=systems) == 0
        assert commands(stand_in) == [("slow/seed=0", "fit")]


@pytest.mark.usefixtures("unparsed")
class TestDryRun:
    def test_what_each_run_would_do_and_cost(
        self, sweep: Sweep, stand_in, system, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sweep(systems={"done": system()}) == 0
        stand_in.forget()
        systems = {
            "done": system(),
            "more": system(arguments={"model.epochs": 2}),
            "other": system("no_retrieval"),
        }
        capsys.readouterr()
        assert sweep("--dry_run", systems=systems) == 0
        assert capsys.readouterr().out.splitlines() == [
            "skip    done/seed=0",
            "run     more/seed=0: 3 s, 2e+09 FLOPs",
            "run     other/seed=0: unknown",
            "2 of 3 runs to do: 3 s, 2e+09 FLOPs, and 1 of unknown cost",
            "compare the finished runs",
        ]
        assert stand_in.calls() == []
        assert not (tmp_path / "runs" / "tried" / "synthetic_relations" / "noretrieval").exists()

    def test_refused_ones_are_told(
        self, sweep: Sweep, system, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert sweep(systems={"a": system()}) == 0
        other = {"a": system(arguments={"model.epochs": 2})}
        capsys.readouterr()
        assert sweep("--dry_run", systems=other, compare=False) == 0
        first, last = capsys.readouterr().out.splitlines()
        assert first.startswith("refuse  a/seed=0: ")
        assert last == "0 of 1 runs to do: 0 s, 0 FLOPs"
        assert sweep("--dry_run", "--overwrite=true", systems=other, compare=False) == 0
        assert capsys.readouterr().out.startswith("replace a/seed=0: ")


class TestSearch:
    @pytest.mark.usefixtures("unparsed")
    def test_the_best_setting_runs_with_all_seeds(
        self, sweep: Sweep, stand_in, system, compared, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("optuna", reason="searches need Optuna")
        # Every trial gives the same, and of equal ones the first is taken.
        stand_in.does["*"] = {"validation": {"f1": 0.5}, "configuration": "of a trial"}
        search = {"metric": "f1", "sampler": "grid", "space": {"model.k": [3, 2]}}
        systems = {"a": system(), "b": system(search=False)}
        given = {"systems": systems, "search": search, "seeds": [0, 1]}
        assert sweep("--dry_run", **given) == 0
        assert "search  a: 0 of 2 trials done\n" in capsys.readouterr().out
        best = plan(
            load(stand_in.calls_file.parent / "sweep.yaml"),
            runs=stand_in.calls_file.parent / "runs",
            found={"a": {"model.k": 3}},
        )
        sweep.prepare = [lambda runs: stand_in.knows(best)]  # type: ignore[attr-defined]
        assert sweep(**given) == 0
        calls = stand_in.calls()
        trials = [words for name, words in calls if name.startswith("a-")]
        assert [("--model.k=3" in w, "--model.k=2" in w) for w in trials] == [
            *((True, False), (False, True))
        ]
        assert all("--evaluate=false" in words for words in trials)
        final = [(name, words) for name, words in calls if not name.startswith("a-")]
        assert [name for name, _ in final] == ["a/seed=0", "a/seed=1", "b/seed=0", "b/seed=1"]
        assert all("--model.k=3" in words for name, words in final if name.startswith("a/"))
        assert not any("--evaluate=false" in words for _, words in final)
        assert compared[0][0] == [name for name, _ in final]
        capsys.readouterr()
        sweep.prepare = [lambda runs: stand_in.knows(best)]  # type: ignore[attr-defined]
        assert sweep("--dry_run", **given) == 0
        said = capsys.readouterr().out
        assert "search  a: 2 of 2 trials done, best so far: {'model.k': 3}" in said
        assert "skip    a/seed=1" in said

    @pytest.mark.usefixtures("unparsed")
    def test_a_search_whose_trials_all_fail(
        self, sweep: Sweep, stand_in, system, compared, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("optuna", reason="searches need Optuna")
        stand_in.does["*"] = {"exit": 1}
        search = {"metric": "f1", "trials": 1, "space": {"model.k": [3, 2]}}
        systems = {
            "a": system(search=search),
            "then": system(begin_with="a"),
            "b": system(),
        }
        assert sweep(systems=systems) == 1
        said = capsys.readouterr().out
        assert "not finished: a/seed=0: no trial of its search has finished" in said
        assert "not finished: then/seed=0: a/seed=0 did not finish" in said
        assert compared[0][0] == ["b/seed=0"]


@pytest.mark.slow
class TestRealRuns:
    """Processes that train, one of which dies."""

    def test_a_worker_that_dies_is_resumed_to_the_bit(
        self,
        write: Write,
        system,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        here = Path(__file__).resolve().parent
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
        )
        monkeypatch.syspath_prepend(str(here))
        systems = {
            "rag": system(
                arguments={
                    "model.epochs": 3,
                    "trainer.callbacks+": "dying.DieOnce",
                    "data.reader.init_args.test": 8,
                    "data.cache_dir": str(tmp_path / "cache"),
                }
            )
        }
        path = write(systems=systems, compare=False)

        def sweep(runs: str, marker: Path) -> tuple[int, str]:
            monkeypatch.setenv("DIE_ONCE", str(marker))
            code = cli.main(["sweep", str(path), f"--runs={tmp_path / runs}"])
            return code, capsys.readouterr().out

        code, said = sweep("interrupted", tmp_path / "died")
        assert code == 1
        assert "failed rag/seed=0: killed by SIGKILL" in said
        code, said = sweep("interrupted", tmp_path / "died")
        assert code == 0
        assert "fit rag/seed=0 (goes on)" in said
        code, said = sweep("whole", tmp_path / "died")  # which is there: it lives
        assert code == 0
        assert "goes on" not in said
        folders = [
            tmp_path / runs / "tried" / "synthetic_relations" / "rag4re" / "rag" / "seed=0"
            for runs in ("interrupted", "whole")
        ]
        for name in ("predictions.jsonl", "metrics.json"):
            one, other = ((folder / name).read_bytes() for folder in folders)
            assert one == other
        one, other = (json.loads((folder / "summary.json").read_text()) for folder in folders)
        assert one["configuration"] == other["configuration"]
        assert one["validation"] == other["validation"]
        code, said = sweep("whole", tmp_path / "died")
        assert code == 0
        assert "1 of 1 runs are finished already" in said

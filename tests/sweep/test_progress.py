"""The view of all runs, on a terminal and elsewhere; what finished runs say of cost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from lightning_rag.sweep.cost import Cost, duration, estimate, finished, in_words
from lightning_rag.sweep.jobs import Event, Job
from lightning_rag.sweep.plan import PlannedRun
from lightning_rag.sweep.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def jobs(folder: Path, *names: str, words: tuple[str, ...] = ("fit",)) -> list[Job]:
    return [Job(name, words, folder / name, folder / f"{name}.log") for name in names]


def leave(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


CURVE = [{"step": 8, "phase": "warm_up", "f1": 0.2}, {"step": 16, "phase": "em_1", "f1": 0.25}]


def test_lines(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress(jobs(tmp_path, "a", "b", "c"), out)
    progress.report(Event("a", "started"))
    leave(
        tmp_path / "a",
        metrics={"validation": CURVE, "test": {"f1": 0.5, "accuracy": 0.7}},
        summary={"metrics": {"monitor": "f1"}},
    )
    progress.report(Event("a", "running", 1.0))  # a minute has not passed
    progress.report(Event("a", "finished", 43.2))
    progress.report(Event("b", "started", reason="on node 7"))
    (tmp_path / "b.log").write_text("$ python -m lightning_rag.cli fit\nfirst\nlast\n")
    progress.report(Event("b", "failed", 2.0, "exit code 1"))
    progress.report(Event("c", "blocked", reason="b did not finish"))
    progress.close()
    assert out.getvalue().splitlines() == [
        "fit a",
        "finished a in 43 s: f1 0.5000",
        "fit b on node 7",
        "failed b: exit code 1",
        "    first",
        "    last",
        f"    (all of it: {tmp_path / 'b.log'})",
        "blocked c: b did not finish",
    ]
    assert progress.finished == ["a"]
    assert progress.failed == {"b": "exit code 1", "c": "b did not finish"}


def test_a_metric_that_is_asked_for(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress(jobs(tmp_path, "a", "b", words=("fit", "--ckpt_path=last")), out, "f1")
    leave(tmp_path / "a", metrics={"validation": CURVE})
    for name in ("a", "b"):
        progress.report(Event(name, "started"))
        progress.report(Event(name, "finished", 1))
    assert out.getvalue().splitlines() == [
        "fit a (goes on)",
        "finished a in 1 s: em_1 step 16, f1 0.2500",
        "fit b (goes on)",
        "finished b in 1 s",
    ]


def test_a_line_about_what_runs_every_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_rag.sweep.progress.TELL_EVERY", 0.0)
    out = io.StringIO()
    progress = Progress(jobs(tmp_path, "a", "b"), out, "f1")
    leave(tmp_path / "b", metrics={"validation": CURVE})
    for name in ("a", "b"):
        progress.report(Event(name, "started"))
    progress.report(Event("a", "running", 61))
    progress.report(Event("b", "running", 150))
    assert out.getvalue().splitlines()[2:] == [
        "0 of 2 done; running: a: 61 s",
        "0 of 2 done; running: a: 61 s; b: 2 min, em_1 step 16, f1 0.2500",
    ]


def test_on_a_terminal(tmp_path: Path) -> None:
    """A bar of all runs, a line for each that runs; what is said stays above them."""
    out = Terminal()
    progress = Progress(jobs(tmp_path, "a", "b"), out)
    leave(tmp_path / "a", metrics={"validation": CURVE})
    for name in ("a", "b"):
        progress.report(Event(name, "started"))
        progress.report(Event(name, "running", 5))
    progress.report(Event("a", "finished", 6))
    progress.report(Event("b", "failed", 7, "exit code 1"))
    progress.close()
    shown = out.getvalue()
    for text in ("fit a", "a: 5 s, em_1 step 16", "b: 5 s", "finished a in 6 s", "2/2"):
        assert text in shown
    assert progress.failed == {"b": "exit code 1"}


class TestCost:
    """Medians of what is most alike."""

    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        self.leave(tmp_path, "exp/d/rag4re/small/seed=0", 10, 1e9)
        self.leave(tmp_path, "exp/d/rag4re/small/seed=1", 12, 1e9)
        self.leave(tmp_path, "exp/d/rag4re/small/seed=2", 90, 1e9)
        self.leave(tmp_path, "exp/d/rag4re/large/seed=0", 100, 5e9)
        self.leave(tmp_path, "exp/d/rag4re/tested/seed=0", 1, 1e8, trained=False)
        self.leave(tmp_path, "exp/d/etrag/small/seed=0", 1000, 1e12, method="Etrag")
        self.leave(tmp_path, "exp/d/rag4re/tenth/seed=0", 3, 1e8, fraction=0.1)
        broken = tmp_path / "exp/d/rag4re/broken/seed=0"
        leave(broken)
        (broken / "summary.json").write_text("{")
        leave(tmp_path / "exp/d/rag4re/early/seed=0", summary={"method": "Rag4re", "data": {}})
        return tmp_path

    def leave(
        self,
        runs: Path,
        place: str,
        seconds: float,
        flops: float,
        *,
        method: str = "Rag4re",
        fraction: float = 1.0,
        trained: bool = True,
    ) -> None:
        phase = {"seconds/train": seconds / 2, "flops": flops / 2, "memory/process": 1e9}
        summary = {
            "method": method,
            "data": {"name": "d", "fraction": fraction},
            "cost": {"fit": phase, "test": {**phase, "tokens/generator/evaluate": 7}},
        }
        leave(runs / place, summary={**summary, **({"fit": {}} if trained else {})})

    def run(self, variant: str, **keys: object) -> PlannedRun:
        given = {
            "name": f"{variant}/seed=0",
            "system": variant,
            "base": variant,
            "seed": 0,
            "words": (),
            "folder": Path(),
            "configuration": "",
            "train": True,
            "after": (),
            "method": "Rag4re",
            "data": "d",
            "fraction": 1.0,
        }
        return PlannedRun(**{**given, **keys})

    def test_the_same_variant(self, runs: Path) -> None:
        assert estimate(self.run("small"), finished(runs)) == Cost(12, 1e9)

    def test_the_same_method_and_data(self, runs: Path) -> None:
        assert estimate(self.run("new"), finished(runs)) == Cost(51, 1e9)  # of 10, 12, 90, 100

    def test_a_test_alone(self, runs: Path) -> None:
        assert estimate(self.run("new", train=False), finished(runs)) == Cost(1, 1e8)

    def test_another_share_of_the_data(self, runs: Path) -> None:
        assert estimate(self.run("new", fraction=0.1), finished(runs)) == Cost(3, 1e8)

    @pytest.mark.parametrize("keys", [{"data": "e"}, {"method": "Dro"}, {"fraction": 0.5}])
    def test_unknown(self, runs: Path, keys: dict[str, object]) -> None:
        assert estimate(self.run("small", **keys), finished(runs)) is None

    def test_no_runs(self, tmp_path: Path) -> None:
        assert finished(tmp_path / "none") == []

    def test_in_words(self) -> None:
        assert in_words(None) == "unknown"
        assert in_words(Cost(90, 1.234e15)) == "90 s, 1.2e+15 FLOPs"
        assert [duration(s) for s in (0.4, 119, 120, 7199, 7200)] == [
            *("0 s", "119 s", "2 min", "120 min", "2.0 h")
        ]

"""What is left to do of a run, by the files that it has left."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lightning_rag.sweep.plan import PlannedRun
from lightning_rag.sweep.state import Step, next_step

MINE, OTHER = "a" * 64, "b" * 64


def planned(folder: Path, name: str = "one", **keys: object) -> PlannedRun:
    run = PlannedRun(
        name=f"{name}/seed=0",
        system=name,
        base=name,
        seed=0,
        words=("--model.k=3",),
        folder=folder / name,
        configuration=MINE,
        train=True,
        after=(),
        method="Rag4re",
        data="d",
        fraction=1.0,
    )
    return replace(run, **keys)


def leave(
    run: PlannedRun,
    *files: str,
    configuration: str = MINE,
    fit: str | None = None,
    tested: bool = False,
    data: object = None,
) -> None:
    """Write files into a run's folder."""
    for name in files:
        (run.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (run.folder / name).touch()
    if fit or tested:
        run.folder.mkdir(parents=True, exist_ok=True)
        summary: dict[str, object] = {"configuration": configuration, "data": data or {}}
        summary |= {"fit": {"date": fit}} if fit else {}
        summary |= {"test": {"date": "2026-01-05T00:00:00+00:00"}} if tested else {}
        (run.folder / "summary.json").write_text(json.dumps(summary))
        (run.folder / "metrics.json").write_text(json.dumps({"test": {}} if tested else {}))


def step(run: PlannedRun, there: str = MINE, **keys: object) -> Step:
    return next_step(run, configuration_of_folder=lambda folder: there, **keys)


BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
DAY = "2026-01-03T00:00:00+00:00"


class TestTraining:
    @pytest.fixture
    def run(self, tmp_path: Path) -> PlannedRun:
        return planned(tmp_path)

    def test_nothing_there(self, run: PlannedRun) -> None:
        assert step(run) == Step("run", ("fit", "--model.k=3"))

    def test_killed_before_the_first_checkpoint(self, run: PlannedRun) -> None:
        """An estimate goes on by itself; another configuration's is not used."""
        leave(run, "config.yaml", "estimates/em_1/0.safetensors")
        assert step(run, there=OTHER) == Step("run", ("fit", "--model.k=3"))

    def test_interrupted(self, run: PlannedRun) -> None:
        leave(run, LAST, BEST)
        assert step(run) == Step("resume", ("fit", "--model.k=3", "--ckpt_path=last"))
        assert step(run, overwrite=True).kind == "resume"

    def test_interrupted_between_the_best_and_the_last_checkpoint(self, run: PlannedRun) -> None:
        leave(run, BEST)
        assert step(run) == Step("run", ("fit", "--model.k=3", "--overwrite=true"))

    @pytest.mark.parametrize("there", [OTHER, ""])
    def test_interrupted_with_another_configuration(self, run: PlannedRun, there: str) -> None:
        leave(run, LAST)
        refused = step(run, there=there)
        assert refused.kind == "refuse"
        assert str(run.folder) in refused.reason
        replaced = step(run, there=there, overwrite=True)
        assert replaced == Step("replace", ("fit", "--model.k=3", "--overwrite=true"))

    def test_trained_but_not_tested(self, run: PlannedRun) -> None:
        leave(run, LAST, BEST, fit=DAY)
        best = run.folder / BEST
        assert step(run) == Step("test", ("test", "--model.k=3", f"--ckpt_path={best}"))
        assert step(replace(run, evaluate=False)).kind == "skip"

    def test_tested_without_predictions(self, run: PlannedRun) -> None:
        leave(run, BEST, fit=DAY, tested=True)
        assert step(run).kind == "test"

    def test_finished(self, run: PlannedRun) -> None:
        leave(run, BEST, "predictions.jsonl", fit=DAY, tested=True)
        assert step(run) == Step("skip")
        assert step(run, overwrite=True) == Step("skip")

    def test_finished_where_there_is_no_test_split(self, run: PlannedRun) -> None:
        leave(run, BEST, fit=DAY, data={"test": {"size": 0}})
        assert step(run) == Step("skip")

    def test_finished_with_another_configuration(self, run: PlannedRun) -> None:
        leave(run, BEST, "predictions.jsonl", fit=DAY, tested=True, configuration=OTHER)
        refused = step(run)
        assert (refused.kind, refused.words) == ("refuse", ())
        assert "another configuration" in refused.reason
        assert step(run, overwrite=True).words[-1] == "--overwrite=true"

    def test_finished_by_an_older_version(self, run: PlannedRun) -> None:
        leave(run, BEST, "predictions.jsonl", fit=DAY, tested=True, configuration="")
        assert "older version" in step(run).reason

    def test_a_damaged_summary_is_none(self, run: PlannedRun) -> None:
        leave(run, LAST, BEST, fit=DAY)
        (run.folder / "summary.json").write_text('{"fit": ')
        assert step(run).kind == "resume"


class TestTestAlone:
    @pytest.fixture
    def run(self, tmp_path: Path) -> PlannedRun:
        return planned(tmp_path, train=False)

    def test_nothing_there(self, run: PlannedRun) -> None:
        assert step(run) == Step("run", ("test", "--model.k=3"))

    def test_finished(self, run: PlannedRun) -> None:
        leave(run, "predictions.jsonl", tested=True)
        assert step(run) == Step("skip")

    def test_with_another_configuration(self, run: PlannedRun) -> None:
        leave(run, "predictions.jsonl", tested=True, configuration=OTHER)
        assert step(run).kind == "refuse"
        assert step(run, overwrite=True) == Step("replace", ("test", "--model.k=3"))

    def test_a_training_is_not_replaced_by_a_test(self, run: PlannedRun) -> None:
        leave(run, "predictions.jsonl", tested=True, fit=DAY, configuration=OTHER)
        assert step(run, overwrite=True).kind == "refuse"


class TestWhatItBeginsWith:
    @pytest.fixture
    def first(self, tmp_path: Path) -> PlannedRun:
        run = planned(tmp_path, "first")
        leave(run, BEST, "predictions.jsonl", fit=DAY, tested=True)
        return run

    @pytest.mark.parametrize("train", [True, False])
    @pytest.mark.parametrize(
        ("before", "kind"),
        [("2026-01-02", "skip"), ("2026-01-03", "skip"), ("2026-01-06", "refuse")],
    )
    def test_trained_anew_since(
        self, tmp_path: Path, first: PlannedRun, train: bool, before: str, kind: str
    ) -> None:
        """The second ended on January 4 (a test: 5); `before` is when the first did."""
        leave(first, fit=f"{before}T00:00:00+00:00", tested=True)
        run = planned(tmp_path, after=(first.name,), train=train)
        fit = "2026-01-04T00:00:00+00:00" if train else None
        leave(run, "predictions.jsonl", fit=fit, tested=True)
        assert step(run, first=first).kind == kind

    @pytest.mark.parametrize(("day", "kind"), [(4, "refuse"), (7, "resume")])
    def test_trained_anew_since_it_was_interrupted(
        self, tmp_path: Path, first: PlannedRun, day: int, kind: str
    ) -> None:
        """Its last checkpoint is of what the first, which ended on January 6, was before."""
        leave(first, fit="2026-01-06T00:00:00+00:00", tested=True)
        run = planned(tmp_path, after=(first.name,))
        leave(run, LAST)
        written = datetime(2026, 1, day, tzinfo=UTC).timestamp()
        os.utime(run.folder / LAST, (written, written))
        assert step(run, first=first).kind == kind
        replaced = {"refuse": "replace", "resume": "resume"}[kind]
        assert step(run, first=first, overwrite=True).kind == replaced

    def test_trained_anew_in_this_sweep(self, tmp_path: Path, first: PlannedRun) -> None:
        run = planned(tmp_path, after=(first.name,))
        leave(run, BEST, "predictions.jsonl", fit="2026-01-04T00:00:00+00:00", tested=True)
        assert step(run, first=first).kind == "skip"
        refused = step(run, first=first, renewed={first.name})
        assert "which is trained anew" in refused.reason
        assert step(run, first=first, renewed={first.name}, overwrite=True).kind == "replace"

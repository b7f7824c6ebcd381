"""Searches: which settings are tried, what is chosen, and how an interrupted search goes on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from lightning_rag.errors import UserError
from lightning_rag.files import Json
from lightning_rag.sweep.file import Settings, load
from lightning_rag.sweep.plan import Commands, PlannedRun, plan
from lightning_rag.sweep.search import Study, journal, search, searched, storage

pytest.importorskip("optuna", reason="searches need Optuna")

Write = Callable[..., Path]
SPACE = {"model.k": [1, 2, 3], "data.fraction": {"low": 0.25, "high": 1.0}}


def value(run: PlannedRun, key: str) -> Json:
    """A setting of a run."""
    (word,) = (word for word in run.words if word.startswith(f"--{key}="))
    parsed: Json = json.loads(word.partition("=")[2])
    return parsed


def quality(run: PlannedRun) -> float:
    """What a run's validation gives: best at k = 2, the larger the share of the data."""
    k, share = value(run, "model.k"), value(run, "data.fraction")
    return -abs(float(k) - 2) + float(share) + run.seed


class Trainer:
    """Makes runs without training.

    Args:
        score: what a run's validation gives.
        fails: which runs fail.
        stop_after: runs, after which it is interrupted.
    """

    def __init__(
        self,
        score: Callable[[PlannedRun], float] = quality,
        fails: Callable[[PlannedRun], bool] = lambda run: False,
        stop_after: int | None = None,
    ) -> None:
        self.score, self.fails, self.stop_after = score, fails, stop_after
        self.rounds: list[list[PlannedRun]] = []
        self.made: list[PlannedRun] = []

    def __call__(self, runs: Sequence[PlannedRun]) -> set[str]:
        self.rounds.append([*runs])
        for run in runs:
            if self.stop_after is not None and len(self.made) >= self.stop_after:
                raise KeyboardInterrupt
            if self.fails(run):
                continue
            self.made.append(run)
            run.folder.mkdir(parents=True, exist_ok=True)
            point = {"step": 1, "phase": "fit", "f1": self.score(run)}
            (run.folder / "summary.json").write_text(json.dumps({"fit": {}, "validation": point}))
        return {run.name for run in runs if not self.fails(run)}


class Open:
    """Opens the searches of a file, as a process does."""

    def __init__(self, write: Write, system: Callable[..., object], folder: Path) -> None:
        self.write, self.system, self.runs = write, system, folder / "runs"

    def __call__(self, *, systems: dict | None = None, **keys: object) -> list[Study]:
        given = {"metric": "f1", "trials": 6, "space": SPACE, **keys}
        settings = {key: value for key, value in given.items() if value is not None}
        path = self.write(systems=systems or {"a": self.system()}, search=settings, seeds=[0, 1])
        file = load(path)
        commands = Commands(file, self.runs, {})
        studies = searched(file, plan(file, runs=self.runs), commands)
        for study in studies:
            study.open(storage(file, self.runs))
        return studies


@pytest.fixture
def opened(write: Write, system, tmp_path: Path) -> Open:
    return Open(write, system, tmp_path)


def tried(runs: Iterable[PlannedRun]) -> list[tuple[Json, Json]]:
    return [(value(run, "model.k"), value(run, "data.fraction")) for run in runs]


@pytest.mark.usefixtures("unparsed")
class TestTrials:
    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    def test_so_many_within_the_space_and_the_best_is_found(
        self, opened: Open, sampler: str
    ) -> None:
        trainer = Trainer()
        (study,) = opened(sampler=sampler)
        found = search([study], trainer)
        assert study.done == 6
        for k, share in tried(trainer.made):
            assert k in (1, 2, 3)
            assert 0.25 <= float(share) <= 1.0
        best = max(trainer.made, key=quality)
        expected = {
            "model.k": value(best, "model.k"),
            "data.fraction": value(best, "data.fraction"),
        }
        assert found == {"a": expected}

    def test_runs_are_not_tested_and_lie_apart(self, opened: Open) -> None:
        trainer = Trainer()
        search(opened(trials=1), trainer)
        (run,) = trainer.made
        assert not run.evaluate
        assert run.seed == 0
        assert run.folder.relative_to(opened.runs).parts[0] == "tried-search"
        assert run.system.startswith("a-")

    def test_every_combination_of_a_grid_once(self, opened: Open) -> None:
        space = {"model.k": [1, 2], "data.fraction": [0.5, 1.0, 0.25]}
        trainer = Trainer()
        found = search(opened(sampler="grid", trials=None, space=space), trainer)
        assert sorted(tried(trainer.made)) == [(k, f) for k in (1, 2) for f in (0.25, 0.5, 1.0)]
        assert found == {"a": {"model.k": 2, "data.fraction": 1.0}}

    def test_a_part_of_a_grid(self, opened: Open) -> None:
        trainer = Trainer()
        space = {"model.k": [3, 2, 1], "data.fraction": [1.0]}
        search(opened(sampler="grid", trials=2, space=space), trainer)
        assert tried(trainer.made) == [(3, 1.0), (2, 1.0)]
        search(opened(sampler="grid", trials=9, space=space), trainer)
        assert tried(trainer.made) == [(3, 1.0), (2, 1.0), (1, 1.0)]

    def test_less_is_better(self, opened: Open) -> None:
        space = {"model.k": [1, 2, 3], "data.fraction": [1.0]}
        found = search(opened(sampler="grid", trials=None, mode="min", space=space), Trainer())
        assert found["a"]["model.k"] in (1, 3)

    def test_values_that_optuna_does_not_know(self, opened: Open) -> None:
        rates = [{"generator": 1e-3}, {"generator": 2e-3, "retriever": 1e-4}]
        space = {"optimizer.learning_rates": rates}
        trainer = Trainer(lambda run: len(value(run, "optimizer.learning_rates")))
        found = search(opened(sampler="grid", trials=None, space=space), trainer)
        assert found == {"a": {"optimizer.learning_rates": rates[1]}}

    def test_whole_numbers_and_steps(self, opened: Open) -> None:
        space = {
            "model.k": {"low": 1, "high": 3},
            "data.fraction": {"low": 0.25, "high": 0.75, "step": 0.25},
            "model.epochs": {"low": 1, "high": 64, "log": True},
        }
        trainer = Trainer()
        search(opened(space=space, sampler="random"), trainer)
        for run in trainer.made:
            assert isinstance(value(run, "model.k"), int)
            assert isinstance(value(run, "model.epochs"), int)
            assert value(run, "data.fraction") in (0.25, 0.5, 0.75)

    def test_the_mean_over_seeds_counts(self, opened: Open) -> None:
        """At k = 1 one seed is the best of all, and the mean is worse."""
        values = {(1, 0): 0.9, (1, 1): 0.1, (2, 0): 0.6, (2, 1): 0.6}
        trainer = Trainer(lambda run: values[int(str(value(run, "model.k"))), run.seed])
        space = {"model.k": [1, 2]}
        found = search(opened(sampler="grid", trials=None, space=space, seeds=[0, 1]), trainer)
        assert found == {"a": {"model.k": 2}}
        assert len(trainer.made) == 4

    def test_so_many_at_once(self, opened: Open) -> None:
        trainer = Trainer()
        search(opened(trials=5, at_once=2), trainer)
        assert [len(runs) for runs in trainer.rounds] == [2, 2, 1]

    def test_systems_are_searched_side_by_side(self, opened: Open) -> None:
        systems = {"a": opened.system(), "b": opened.system(search={"trials": 1})}
        trainer = Trainer()
        found = search(opened(systems=systems, trials=2), trainer)
        assert [len(runs) for runs in trainer.rounds] == [2, 1]
        assert {run.system.split("-")[0] for run in trainer.rounds[0]} == {"a", "b"}
        assert found.keys() == {"a", "b"}

    def test_what_a_trial_begins_with_comes_before(self, opened: Open) -> None:
        systems = {
            "first": opened.system(search=False),
            "then": opened.system(begin_with="first", search=False),
            "a": opened.system(begin_with="then"),
        }
        trainer = Trainer(lambda run: 1.0)
        search(opened(systems=systems, trials=1), trainer)
        first, then, trial = trainer.made
        assert (first.name, then.name) == ("first/seed=0", "then/seed=0")
        assert trial.after == ("then/seed=0",)
        assert f"--initial_weights={then.best}" in trial.words
        assert first.evaluate


@pytest.mark.usefixtures("unparsed")
class TestInterruption:
    def test_it_goes_on_with_the_same_trials(self, opened: Open, tmp_path: Path) -> None:
        """Interrupted within the third trial and given again: the trials of one that was not."""
        whole = Trainer()
        search(opened(), whole)
        opened.runs = tmp_path / "interrupted"
        before, after = Trainer(stop_after=2), Trainer()
        with pytest.raises(KeyboardInterrupt):
            search(opened(), before)
        found = search(opened(), after)
        assert tried(before.made) + tried(after.made) == tried(whole.made)
        assert len(after.made) == 4
        assert quality(max(whole.made, key=quality)) == max(map(quality, after.made + before.made))
        assert found["a"].keys() == SPACE.keys()

    def test_a_finished_search_runs_nothing(self, opened: Open) -> None:
        first, again = Trainer(), Trainer()
        found = search(opened(trials=2), first)
        assert search(opened(trials=2), again) == found
        assert again.rounds == []

    def test_more_trials_are_added(self, opened: Open) -> None:
        search(opened(trials=2), Trainer())
        again = Trainer()
        search(opened(trials=5), again)
        assert len(again.made) == 3

    def test_another_space_is_another_search(self, opened: Open) -> None:
        search(opened(trials=2), Trainer())
        again = Trainer()
        space = {**SPACE, "model.k": [1, 2]}
        search(opened(trials=2, space=space), again)
        assert len(again.made) == 2

    def test_another_setting_of_the_system_is_another_search(self, opened: Open) -> None:
        first, again = Trainer(), Trainer()
        search(opened(trials=1), first)
        systems = {"a": opened.system(arguments={"model.epochs": 2})}
        search(opened(systems=systems, trials=1), again)
        assert len(again.made) == 1
        assert first.made[0].folder != again.made[0].folder


@pytest.mark.usefixtures("unparsed")
class TestFailures:
    def test_the_others_go_on_and_it_is_tried_again(self, opened: Open) -> None:
        first, again = Trainer(fails=lambda run: value(run, "model.k") == 2), Trainer()
        space = {"model.k": [1, 2, 3]}
        score = lambda run: -abs(float(str(value(run, "model.k"))) - 2)  # noqa: E731
        first.score = again.score = score
        found = search(opened(sampler="grid", trials=None, space=space), first)
        assert len(first.made) == 2
        assert found["a"]["model.k"] in (1, 3)
        found = search(opened(sampler="grid", trials=None, space=space), again)
        assert [value(run, "model.k") for run in again.made] == [2]
        assert found == {"a": {"model.k": 2}}

    @pytest.mark.parametrize("sampler", ["grid", "random"])
    def test_one_that_diverges_counts_as_tried(self, opened: Open, sampler: str) -> None:
        """Its figure is no number: it is not the best, and is not tried for ever."""
        trainer = Trainer(lambda run: math.nan if value(run, "model.k") != 1 else 0.5)
        again = Trainer(trainer.score)
        space = {"model.k": [1, 2, 3]}
        for one in (trainer, again):
            found = search(opened(sampler=sampler, trials=3, at_once=3, space=space), one)
        assert sum(map(len, trainer.rounds)) <= 3
        assert again.made == []
        assert found in ({"a": {"model.k": 1}}, {})
        if sampler == "grid":
            assert found

    def test_none_finishes(self, opened: Open) -> None:
        trainer = Trainer(fails=lambda run: True)
        assert search(opened(trials=2), trainer) == {}
        assert sum(map(len, trainer.rounds)) == 2


class TestMistakes:
    def test_an_unknown_metric(self, opened: Open) -> None:
        with pytest.raises(UserError, match=r"search\.metric: .* has no 'f2'; legal: f1, phase"):
            search(opened(metric="f2", trials=1), Trainer())

    def test_a_run_that_never_validates(self, opened: Open) -> None:
        def never(runs: Sequence[PlannedRun]) -> set[str]:
            return {run.name for run in runs}

        with pytest.raises(UserError, match="it never validated"):
            search(opened(trials=1), never)

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            ({"model.kk": [1, 2]}, "'kk' is not accepted"),
            ({"model.k": [1, 2, "three"]}, "Expected a <class 'int'>"),
            ({"model.k": {"low": 1.0, "high": 2.5}}, "Expected a <class 'int'>"),
        ],
    )
    def test_the_space_is_parsed_before_anything_runs(
        self, opened: Open, space: Settings, message: str
    ) -> None:
        with pytest.raises(UserError, match=r"systems\.a: ") as mistake:
            opened(space=space)
        assert message in str(mistake.value)

    def test_seeds_that_the_system_has_not(self, opened: Open) -> None:
        with pytest.raises(UserError, match=r"search\.seeds: \[7\] are not among"):
            opened(seeds=[0, 7])

    def test_a_search_after_a_search(self, opened: Open) -> None:
        systems = {"a": opened.system(), "b": opened.system(begin_with="a")}
        with pytest.raises(UserError, match=r"systems\.b: it is searched, and begins with a"):
            opened(systems=systems)

    def test_without_optuna(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        with pytest.raises(UserError, match=r"pip install 'lightning_rag\[search\]'"):
            opened()

    def test_no_search_needs_no_optuna(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        file = load(write())
        assert searched(file, [], Commands(file, tmp_path, {})) == []
        assert not journal(file, tmp_path).exists()

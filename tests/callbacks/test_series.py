"""Series of phases keep the best of all of them, end by their patience, and resume exactly."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_rag.callbacks.checkpoints import ResumePoint
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase, check_schedule, series_of

STEPS = 5  # batches in an epoch

State = dict[str, Tensor]
Make = Callable[[Method], Phase]


def phase(name: str, *trains: str, **settings: object) -> Make:
    settings.setdefault("monitor", "score")
    return lambda method: Phase(name, trains or ("first",), method.loss, **settings)


def iterations(number: int, **settings: object) -> list[Make]:
    """Phases em_1, em_2, … of one epoch each, unless told otherwise, in the series em."""
    if "steps" not in settings:
        settings.setdefault("epochs", 1)
    return [phase(f"em_{i}", series="em", **settings) for i in range(1, number + 1)]


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def saved(folder: Path, name: str = "best.ckpt") -> State:
    state: State = torch.load(folder / "run" / "checkpoints" / name, weights_only=True)
    return state["state_dict"]


def names(method: Method) -> list[str]:
    """The phases that took place, in order."""
    return list(dict.fromkeys(name for name, _ in method.steps))


@pytest.mark.parametrize("mode", ["max", "min"])
def test_best_of_the_series_is_best(fit, tmp_path: Path, mode: str) -> None:
    sign = 1 if mode == "max" else -1
    method, _ = fit(*iterations(4, mode=mode), scores=[sign * s for s in (0.2, 0.5, 0.1, 0.4)])
    assert names(method) == ["em_1", "em_2", "em_3", "em_4"]
    assert same(method.weights(), method.validations[1])
    assert same(saved(tmp_path), method.validations[1])
    for number in range(4):
        assert same(saved(tmp_path, f"em_{number + 1}-best.ckpt"), method.validations[number])


def test_first_of_equal_phases_counts(fit, tmp_path: Path) -> None:
    method, _ = fit(*iterations(3), scores=[0.2, 0.5, 0.5])
    assert same(saved(tmp_path), method.validations[1])
    assert same(method.weights(), method.validations[1])


def test_each_phase_starts_from_the_best_of_the_one_before(fit, tmp_path: Path) -> None:
    """Not from the best of the series: em_2 is worse than em_1 throughout."""
    method, _ = fit(*iterations(3, epochs=2), scores=[0.8, 0.9, 0.3, 0.2, 0.7, 0.6])
    assert same(method.steps[2 * STEPS][1], method.validations[1])
    assert same(method.steps[4 * STEPS][1], method.validations[2])
    assert same(saved(tmp_path), method.validations[1])
    assert same(method.weights(), method.validations[1])


def test_a_warm_up_can_open_the_series(fit, tmp_path: Path) -> None:
    method, _ = fit(
        phase("warm_up", "first", "second", epochs=2, series="em"),
        *iterations(5, series_patience=2),
        scores=[0.1, 0.9, 0.3, 0.4, 0.95, 0.99, 0.99],
    )
    assert names(method) == ["warm_up", "em_1", "em_2"]
    assert same(method.weights(), method.validations[1])
    assert same(saved(tmp_path), method.validations[1])


def test_what_follows_a_series_starts_from_its_best(fit, tmp_path: Path) -> None:
    method, trainer = fit(
        *iterations(4, series_patience=1),
        phase("polish", "second", epochs=2),
        scores=[0.3, 0.6, 0.5, 0.2, 0.1],
    )
    assert names(method) == ["em_1", "em_2", "em_3", "polish"]
    assert same(method.steps[3 * STEPS][1], method.validations[1])
    # The values of another series are none of polish's business.
    assert same(saved(tmp_path), method.validations[3])
    assert same(method.weights(), method.validations[3])
    assert trainer.global_step == 5 * STEPS


def test_two_series(fit, tmp_path: Path) -> None:
    method, _ = fit(
        *iterations(2),
        phase("b_1", epochs=1, series="b", mode="min"),
        phase("b_2", epochs=1, series="b", mode="min"),
        scores=[0.9, 0.8, 0.7, 0.75],
    )
    assert same(method.steps[2 * STEPS][1], method.validations[0])
    assert same(saved(tmp_path), method.validations[2])


@pytest.mark.parametrize(
    ("patience", "last"), [(1, "em_3"), (2, "em_6"), (3, "em_7"), (4, "em_8"), (None, "em_8")]
)
def test_patience_of_a_series(fit, patience: int | None, last: str) -> None:
    """Better at the second and fourth phase, then at the last only."""
    method, trainer = fit(
        *iterations(8, series_patience=patience),
        scores=[0.1, 0.5, 0.5, 0.6, 0.1, 0.2, 0.3, 0.7],
    )
    assert names(method)[-1] == last
    assert trainer.should_stop
    best = {"em_3": 1, "em_6": 3, "em_7": 3, "em_8": 7}[last]
    assert same(method.weights(), method.validations[best])


# Five batches an epoch, validated after the third: at steps 3 and 8, and em_2 ends after step 9.
WITHIN_AN_EPOCH = {"scores": {3: 0.5, 8: 0.4}, "validate_every": 3}


def phases_within_an_epoch() -> list[Make]:
    settings = {"series": "em", "series_patience": 1}
    lengths = (("em_1", 4), ("em_2", 5), ("em_3", 5))
    return [phase(name, steps=steps, **settings) for name, steps in lengths]


def test_patience_runs_out_within_an_epoch(fit, tmp_path: Path) -> None:
    """Where nothing is validated: no further step is taken."""
    method, trainer = fit(*phases_within_an_epoch(), **WITHIN_AN_EPOCH)
    assert [name for name, _ in method.steps] == ["em_1"] * 4 + ["em_2"] * 5
    assert trainer.global_step == 9
    assert trainer.should_stop
    assert same(method.weights(), method.validations[0])
    assert same(saved(tmp_path), method.validations[0])


def test_a_finished_series_is_not_resumed(fit, tmp_path: Path) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    phases = phases_within_an_epoch()
    method, _ = fit(*phases, callbacks=[ResumePoint(checkpoints)], **WITHIN_AN_EPOCH)
    again, trainer = fit(*phases, ckpt_path=checkpoints / "last.ckpt", **WITHIN_AN_EPOCH)
    assert again.steps == []
    assert trainer.global_step == 9
    assert same(again.weights(), method.weights())


def test_phases_without_validation_do_not_count(fit) -> None:
    """Steps 5 and 10 are validated, in em_3 and em_5: one phase without a better value."""
    method, _ = fit(
        *iterations(6, steps=2, series_patience=2), scores={5: 0.5, 10: 0.4, 12: 0.3, 15: 0.2}
    )
    assert names(method)[-1] == "em_6"


def test_nothing_validated(fit, tmp_path: Path) -> None:
    method, _ = fit(*iterations(2, steps=1, series_patience=1), scores={2: 0.5})
    assert names(method) == ["em_1", "em_2"]
    assert same(saved(tmp_path), method.weights())


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": 3}, {"max_steps": 13}])
def test_cut_short_ends_with_the_best_of_the_series(fit, tmp_path: Path, limit) -> None:
    """Between two phases, at the middle of one, and within an epoch."""
    method, _ = fit(
        phase("em_1", epochs=1, series="em"),
        phase("em_2", epochs=1, series="em"),
        phase("em_3", epochs=9, series="em"),
        scores=[0.9, 0.5, 0.6],
        **limit,
    )
    assert same(method.weights(), method.validations[0])
    assert same(saved(tmp_path), method.validations[0])


def test_cut_short_within_the_best_phase(fit, tmp_path: Path) -> None:
    method, _ = fit(
        phase("em_1", epochs=1, series="em"),
        phase("em_2", epochs=9, series="em"),
        scores=[0.5, 0.9, 0.6],
        max_epochs=3,
    )
    assert same(method.weights(), method.validations[1])
    assert same(saved(tmp_path), method.validations[1])


def test_copies_where_links_are_not_possible(
    fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    method, _ = fit(*iterations(3), scores=[0.2, 0.5, 0.1])
    assert same(saved(tmp_path), method.validations[1])
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_weights_that_are_gone(fit, tmp_path: Path) -> None:
    class Remove(Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:
            if trainer.current_epoch == 2:
                (tmp_path / "run" / "checkpoints" / "em_1-best.ckpt").unlink()

    with pytest.raises(UserError, match=r"em_1-best.ckpt is gone, with whose weights"):
        fit(*iterations(3), scores=[0.9, 0.5, 0.1], callbacks=[Remove()])


class Killed(Exception):
    """Ends a run where a power cut might."""


class KillAt(Callback):
    """Raises at a global step, after the batch or after a validation."""

    def __init__(self, step: int, after_validation: bool) -> None:
        self.step = step
        self.after_validation = after_validation

    def on_train_batch_end(self, trainer, *rest: object) -> None:
        if trainer.global_step == self.step and not self.after_validation:
            raise Killed

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.global_step == self.step and self.after_validation:
            raise Killed


RESUMED = {5: 0.5, 10: 0.9, 15: 0.6, 20: 0.7, 25: 0.8, 30: 0.1, 35: 0.2, 40: 0.95}


def schedule() -> list[Make]:
    """A warm-up that is never validated; em_2 is best, em_4 ends the series, tail follows."""

    def estimated(name: str) -> Make:
        def make(method: Method) -> Phase:
            return Phase(
                name,
                ("first", "second"),
                method.loss,
                estimate=method.estimate,
                steps=6,
                monitor="score",
                series="em",
                series_patience=2,
                start_from="warm_up",
                summarize=lambda rows: {"mean": float(rows["doubled"].float().mean())},
            )

        return make

    return [
        phase("warm_up", steps=3, series="em"),
        *(estimated(f"em_{number}") for number in range(1, 7)),
        phase("tail", "second", epochs=1),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("every", [0, 2])
def test_killed_anywhere_and_resumed(fit, tmp_path: Path, every: int) -> None:
    """Every step is a place to be killed at: the ends of steps, validations, phases and epochs."""
    checkpoints = tmp_path / "run" / "checkpoints"
    whole, trainer = fit(*schedule(), scores=RESUMED, callbacks=[ResumePoint(checkpoints, every)])
    assert names(whole) == ["warm_up", "em_1", "em_2", "em_3", "em_4", "tail"]
    assert whole.phase_start == 27
    last = trainer.global_step
    for step in range(1, last + 1):
        for after_validation in {False, step % STEPS == 0}:
            name = f"{step}-{after_validation}"
            folder = tmp_path / name / "checkpoints"
            with pytest.raises(Killed):
                fit(
                    *schedule(),
                    scores=RESUMED,
                    folder=name,
                    callbacks=[KillAt(step, after_validation), ResumePoint(folder, every)],
                )
            resumable = folder / "last.ckpt"
            method, resumed = fit(
                *schedule(),
                scores=RESUMED,
                folder=name,
                callbacks=[ResumePoint(folder, every)],
                ckpt_path=resumable if resumable.exists() else None,
            )
            assert resumed.global_step == last
            assert same(method.weights(), whole.weights()), name
            for file in sorted(checkpoints.glob("*.ckpt")):
                ours = torch.load(folder / file.name, weights_only=True)["state_dict"]
                theirs = torch.load(file, weights_only=True)["state_dict"]
                assert same(ours, theirs), (name, file.name)


def test_all_of_the_state_comes_back(tmp_path: Path) -> None:
    state = {
        "begun": True,
        "start_epoch": 3,
        "best": {"value": 0.5, "file": "em_2-best.ckpt", "misses": 1},
        "best_of_series": {"value": 0.6, "file": "em_1-best.ckpt", "misses": 2},
        "holds": "em_2-best.ckpt",
        "estimates": {"em_1": {"ess": 2.5}},
    }
    schedule = PhaseSchedule(tmp_path)
    assert schedule.state_dict().keys() == state.keys()
    schedule.load_state_dict(state)
    assert schedule.state_dict() == state


def plain(name: str, **settings: object) -> Phase:
    return Phase(name, ("first",), _loss, **{"epochs": 1, **settings})


def _loss(batch: object) -> object:
    return batch


def _other_loss(batch: object) -> object:
    return batch


def test_series_of() -> None:
    phases = [plain("a"), plain("b", series="x"), plain("c", series="x"), plain("d")]
    assert [series_of(phases, i) for i in range(4)] == [
        range(0, 1),
        range(1, 3),
        range(1, 3),
        range(3, 4),
    ]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([plain("a"), plain("a")], r"called \['a', 'a'\]; legal: each name once"),
        (
            [plain("a", series="x"), plain("b"), plain("c", series="x")],
            r"series \['x', 'x'\] are interrupted",
        ),
        (
            [plain("a", series="x", monitor="f1"), plain("b", series="x")],
            "'a' looks for the max of 'f1', 'b' for the max of None",
        ),
        (
            [plain("a", series="x"), plain("b", series="x", mode="min")],
            "'a' looks for the max of None, 'b' for the min of None",
        ),
        (
            [
                plain("a", series="x", monitor="loss"),
                Phase("b", ("first",), _other_loss, epochs=1, series="x", monitor="loss"),
            ],
            "the losses of 'a' and 'b' are two functions",
        ),
        ([plain("a", start_from="b"), plain("b")], r"'a' starts from 'b'; legal: \[\]"),
        ([plain("a"), plain("b", start_from="b")], r"'b' starts from 'b'; legal: \['a'\]"),
        ([plain("a"), plain("b", start_from="c")], r"'b' starts from 'c'; legal: \['a'\]"),
        (
            [
                plain("a", series="x", series_patience=1),
                plain("b", series="x", series_patience=1),
                plain("c", start_from="b"),
            ],
            r"'c' starts from 'b'; legal: \['a'\]",
        ),
    ],
)
def test_schedules_that_cannot_be(phases: list[Phase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schedule(phases)


def test_schedules_that_can_be() -> None:
    within = [plain(f"em_{i}", series="em", series_patience=1) for i in range(3)]
    phases = [
        plain("warm_up", series="em"),
        *within,
        plain("em_3", series="em", start_from="em_2", series_patience=2),
        plain("tail", start_from="em_0", monitor="f1"),
        plain("end", start_from="warm_up", mode="min"),
    ]
    assert check_schedule(phases) == phases
    losses = [plain(name, series="x", monitor="loss", mode="min") for name in "ab"]
    assert check_schedule(losses) == losses


def test_a_schedule_is_checked_before_training(fit) -> None:
    with pytest.raises(ValueError, match="'one' starts from 'none'"):
        fit(phase("one", epochs=1, start_from="none"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"series": "x", "series_patience": 0}, UserError, "series_patience of 0; legal: 1 or"),
        ({"series_patience": 1}, ValueError, "'one' has a series_patience, but no series"),
        ({"summarize": dict}, ValueError, "'one' has a summary of its estimate, but no estimate"),
    ],
)
def test_settings_that_cannot_be(settings, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plain("one", **settings)

"""Budgets end training within phases, between them and within estimates, and survive a kill."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_rag.callbacks import cost_ledger
from lightning_rag.callbacks.budget import Budget, BudgetConfig
from lightning_rag.callbacks.checkpoints import ResumePoint
from lightning_rag.callbacks.cost_ledger import CostLedger
from lightning_rag.callbacks.phases import PhaseSchedule
from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase

STEPS = 5  # batches in an epoch
# 8 queries of 10 tokens a batch, 4 weights a model: 6 FLOPs for each where it learns, else 2.
FIRST = 4 * 80 * (6 + 2)  # a step that trains one of the two models
BOTH = 4 * 80 * (6 + 6)
ESTIMATE = 4 * 80 * 2  # a batch of the estimate, through the first model

State = dict[str, Tensor]
Make = Callable[[Method], Phase]


def phase(name: str, *trains: str, estimate: bool = False, **settings: object) -> Make:
    settings.setdefault("monitor", "score")

    def make(method: Method) -> Phase:
        function = method.estimate if estimate else None
        return Phase(name, trains or ("first",), method.loss, estimate=function, **settings)

    return make


def em(number: int, **settings: object) -> list[Make]:
    """A series whose phases each have an estimate."""
    settings = {"steps": STEPS, **settings}
    return [phase(f"em_{i}", estimate=True, series="em", **settings) for i in range(1, number + 1)]


class Run:
    """Fits phases under a budget; keeps ledger and budget beside method and trainer."""

    def __init__(self, fit: Callable[..., Any], folder: Path) -> None:
        self.fit = fit
        self.root = folder

    def __call__(
        self,
        *phases: Make,
        callbacks: tuple[Callback, ...] = (),
        folder: str = "run",
        resume: bool = False,
        limits: BudgetConfig | None = None,
        **settings: Any,
    ) -> tuple[Any, Any, Budget]:
        self.ledger = CostLedger()
        budget = Budget(limits or BudgetConfig(flops=settings.pop("flops", None)))
        checkpoints = self.root / folder / "checkpoints"
        method, trainer = self.fit(
            *phases,
            callbacks=[self.ledger, budget, *callbacks, ResumePoint(checkpoints, 1)],
            folder=folder,
            ckpt_path=checkpoints / "last.ckpt" if resume else None,
            **settings,
        )
        return method, trainer, budget

    def saved(self, folder: str = "run", name: str = "best.ckpt") -> State:
        path = self.root / folder / "checkpoints" / name
        state: State = torch.load(path, weights_only=True)["state_dict"]
        return state


@pytest.fixture
def run(fit, tmp_path: Path) -> Run:
    return Run(fit, tmp_path)


def same(one: State, other: State) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def rising(steps: int = 60) -> dict[int, float]:
    """Each validation is better than those before."""
    return {step: 0.01 * step for step in range(steps)}


@pytest.mark.parametrize(
    ("budget", "steps"),
    [(1, 1), (FIRST, 1), (FIRST + 1, 2), (3 * FIRST, 3), (5 * FIRST, 5), (6.5 * FIRST, 7)],
)
@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 13}], ids=str)
def test_within_a_phase(run: Run, budget: float, steps: int, length: dict[str, int]) -> None:
    """So many whole steps as are begun with some budget left; then a validation."""
    method, trainer, ended = run(phase("one", **length), flops=budget, scores=rising())
    assert trainer.global_step == len(method.steps) == steps
    assert len(method.validations) == -(-steps // STEPS)
    assert same(method.validations[-1], method.weights())
    assert same(run.saved(), method.weights())
    assert ended.reached == "flops"
    assert run.ledger.spent()["flops"] == steps * FIRST
    assert ended.summary(trainer, method) == {
        "stopped_by": "flops",
        "budget": {
            "limits": {"flops": budget},
            "spent": run.ledger.spent(),
            "phase": "one",
            "step": steps,
        },
    }


def test_the_best_weights_are_kept_not_the_last(run: Run) -> None:
    method, _, _ = run(phase("one", epochs=9), flops=7 * FIRST, scores=[0.9, 0.3])
    assert len(method.validations) == 2
    assert same(run.saved(), method.validations[0])
    assert same(method.weights(), method.validations[0])


def test_validations_cost_nothing_of_it(run: Run) -> None:
    """Validated after every step or after every epoch: the same number of steps."""
    for every in (1, None):
        _, trainer, _ = run(
            phase("one", epochs=3), flops=7 * FIRST, scores=rising(), validate_every=every
        )
        assert trainer.global_step == 7
        assert run.ledger.totals()["flops/evaluate"] > 0


def test_the_following_phases_do_not_take_place(run: Run) -> None:
    method, _, _ = run(
        phase("one", epochs=2), phase("two", "second", epochs=2), flops=3 * FIRST, scores=[0.5]
    )
    assert {name for name, _ in method.steps} == {"one"}
    assert same(run.saved(), method.validations[0])
    assert torch.equal(method.second.linear.weight, method.steps[0][1]["second.linear.weight"])


@pytest.mark.parametrize("length", [{"epochs": 1}, {"steps": STEPS}, {"steps": 3}], ids=str)
def test_between_two_phases(run: Run, length: dict[str, int]) -> None:
    """The second does not begin, and so costs no estimate."""
    number = length.get("steps", STEPS)
    method, trainer, ended = run(
        phase("one", **length),
        phase("two", estimate=True, epochs=2),
        flops=number * FIRST,
        scores=[0.5],
    )
    assert trainer.global_step == number
    assert method.estimated == []
    assert ended.summary(trainer, method)["budget"]["phase"] == "one"
    assert same(run.saved(), method.validations[0])


@pytest.mark.parametrize(("length", "steps"), [({"epochs": 2}, 3 + 10), ({"steps": 8}, 8)])
def test_the_end_of_the_last_phase_is_no_cut(run: Run, length, steps: int) -> None:
    """`two` begins within an epoch, of which it gets the rest; its last step uses up the budget."""
    phases = [phase("one", steps=2), phase("two", **length)]
    method, trainer, ended = run(*phases, flops=(2 + steps) * FIRST, scores=rising())
    assert trainer.global_step == 2 + steps
    assert ended.summary(trainer, method)["stopped_by"] == "phases"
    _, trainer, ended = run(*phases, flops=(1 + steps) * FIRST, folder="cut", scores=rising())
    assert trainer.global_step == 1 + steps
    assert ended.summary(trainer, method)["stopped_by"] == "flops"


@pytest.mark.parametrize(("batches", "computed"), [(0.5, 1), (1, 1), (2.5, 3), (5, 5)])
def test_within_the_first_estimate(
    run: Run, batches: float, computed: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is trained: the weights are those that the run began with."""
    began: list[State] = []

    class Note(Callback):
        def on_train_start(self, trainer, pl_module) -> None:
            began.append(pl_module.weights())

    with caplog.at_level(logging.WARNING, logger="lightning_rag"):
        method, trainer, ended = run(
            phase("one", estimate=True, epochs=2),
            flops=batches * ESTIMATE,
            callbacks=(Note(),),
            scores=rising(),
        )
    assert len(method.estimated) == 8 * computed
    assert trainer.global_step == 0
    assert method.validations == []
    assert ended.summary(trainer, method)["stopped_by"] == "flops"
    assert same(run.saved(), began[0])
    assert dict(method.bank.tensors) == {}
    assert "phase 'one' takes no step: the budget did not last for it" in caplog.text


def test_after_an_estimate(run: Run) -> None:
    """What is left after the estimate buys steps."""
    method, trainer, _ = run(
        phase("one", estimate=True, epochs=2),
        flops=5 * ESTIMATE + 2 * FIRST,
        scores=rising(),
    )
    assert len(method.estimated) == 40
    assert trainer.global_step == 2
    assert same(run.saved(), method.validations[0])


@pytest.mark.parametrize("steps", [STEPS, 3])
def test_within_a_later_estimate(run: Run, steps: int) -> None:
    """At the end of an epoch or in the middle of one: the best of the first phase stays."""
    scores = {3: 0.9, 5: 0.5, 8: 0.7, 10: 0.1}
    method, trainer, ended = run(
        phase("one", steps=STEPS + steps),
        phase("two", "second", estimate=True, epochs=2),
        flops=(STEPS + steps) * FIRST + 2 * ESTIMATE,
        scores=scores,
        validate_every=3,
    )
    assert trainer.global_step == STEPS + steps
    assert len(method.estimated) == 16
    assert same(run.saved(), method.validations[0])
    assert same(method.weights(), method.validations[0])
    assert ended.reached == "flops"
    assert ended.summary(trainer, method)["budget"]["phase"] == "two"
    assert not method.finished


def test_a_larger_budget_goes_on_with_the_estimate(run: Run, monkeypatch) -> None:
    """No batch is computed twice, none is booked twice."""
    schedule = PhaseSchedule.__init__

    def at_once(self: PhaseSchedule, *given: Any) -> None:
        schedule(self, *given)
        self.shard_seconds = 0.0

    monkeypatch.setattr(PhaseSchedule, "__init__", at_once)
    estimate, step = 5 * ESTIMATE, STEPS * FIRST
    cut, _, _ = run(*em(2), flops=3 * ESTIMATE, scores=rising())
    assert cut.estimated == list(range(24))
    again, _, _ = run(*em(2), flops=estimate + step + ESTIMATE, resume=True, scores=rising())
    assert again.estimated == [*range(24, 40), *range(8)]
    assert again.phase.name == "em_2"
    last, trainer, ended = run(*em(2), flops=1e9, resume=True, scores=rising())
    assert last.estimated == list(range(8, 40))
    assert trainer.global_step == 2 * STEPS
    assert [name for name, _ in last.steps] == ["em_2"] * STEPS
    assert ended.summary(trainer, last)["stopped_by"] == "phases"
    assert not (run.root / "run" / "estimates").exists()
    assert run.ledger.spent()["flops"] == 2 * (estimate + step)


@pytest.mark.parametrize(
    ("spent", "taken", "best"),
    [
        (2 * 5 * ESTIMATE + 8 * FIRST, 8, 0),  # in em_2, worse than em_1
        (3 * 5 * ESTIMATE + 12 * FIRST, 12, 2),  # in em_3, better than both
        (5 * ESTIMATE + 5 * FIRST + ESTIMATE, 5, 0),  # in em_2's estimate
        (2 * 5 * ESTIMATE + 10 * FIRST + ESTIMATE, 10, 0),  # in em_3's estimate, em_1 is better
        (3 * 5 * ESTIMATE + 15 * FIRST + ESTIMATE, 15, 2),  # in em_4's estimate
    ],
)
@pytest.mark.parametrize("start_from", [None, "em_1"])
def test_a_series_keeps_its_best(
    run: Run, spent: float, taken: int, best: int, start_from: str | None
) -> None:
    phases = [
        *em(1),
        *(
            phase(f"em_{i}", estimate=True, series="em", steps=STEPS, start_from=start_from)
            for i in range(2, 6)
        ),
    ]
    scores = {5: 0.8, 8: 0.4, 10: 0.5, 12: 0.9, 15: 0.95}
    method, trainer, ended = run(*phases, flops=spent, scores=scores)
    assert trainer.global_step == taken
    assert ended.reached == "flops"
    assert same(method.weights(), method.validations[best])
    assert same(run.saved(), method.validations[best])


def test_patience_may_come_first(run: Run) -> None:
    method, trainer, ended = run(
        phase("one", epochs=9, patience=0), flops=50 * FIRST, scores=[0.5, 0.4]
    )
    assert trainer.global_step == 2 * STEPS
    assert ended.summary(trainer, method)["stopped_by"] == "phases"


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cost_ledger, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def timed(clock: Clock, *, estimate: float, step: float) -> Make:
    """A phase whose batches take so many seconds."""

    def make(method: Method) -> Phase:
        def slow_loss(batch):
            clock.now += step
            return method.loss(batch)

        def slow_estimate(batch):
            clock.now += estimate
            return method.estimate(batch)

        return Phase(
            "one", ("first",), slow_loss, estimate=slow_estimate, epochs=3, monitor="score"
        )

    return make


class SlowValidation(Callback):
    """Each validation takes an hour."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        self.clock.now += 3600.0


@pytest.mark.parametrize(
    ("seconds", "batches", "steps"),
    [(25.0, 3, 0), (50.0, 5, 0), (50.5, 5, 1), (64.0, 5, 7), (1000.0, 5, 15)],
)
def test_seconds(run: Run, clock: Clock, seconds: float, batches: int, steps: int) -> None:
    method, trainer, ended = run(
        timed(clock, estimate=10.0, step=2.0),
        limits=BudgetConfig(seconds=seconds),
        callbacks=(SlowValidation(clock),),
        scores=rising(),
    )
    assert len(method.estimated) == 8 * batches
    assert trainer.global_step == steps
    assert ended.summary(trainer, method)["stopped_by"] == ("phases" if steps == 15 else "seconds")
    assert run.ledger.spent()["seconds"] == 10 * batches + 2 * steps


@pytest.mark.parametrize(
    ("limits", "caps", "by", "steps"),
    [
        ({"seconds": 4.0, "flops": 9 * FIRST}, {}, "seconds", 2),
        ({"seconds": 40.0, "flops": 9 * FIRST}, {}, "flops", 9),
        ({"seconds": 40.0, "flops": 9 * FIRST}, {"max_steps": 4}, "max_steps", 4),
        ({"seconds": 40.0}, {"max_epochs": 1}, "max_epochs", 5),
        ({"seconds": 4.0}, {"max_epochs": 1, "max_steps": 3}, "seconds", 2),
        ({"seconds": 40.0}, {}, "phases", 15),
        ({}, {}, "phases", 15),
        ({}, {"max_steps": 4}, "max_steps", 4),
    ],
)
def test_whichever_comes_first(
    run: Run, clock: Clock, limits: dict[str, float], caps: dict[str, int], by: str, steps: int
) -> None:
    def make(method: Method) -> Phase:
        def loss(batch):
            clock.now += 2.0
            return method.loss(batch)

        return Phase("one", ("first",), loss, epochs=3, monitor="score")

    method, trainer, ended = run(make, limits=BudgetConfig(**limits), scores=rising(), **caps)
    assert trainer.global_step == steps
    assert ended.summary(trainer, method)["stopped_by"] == by


def test_stopped_by_another_callback(run: Run) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *rest: object) -> None:
            trainer.should_stop = trainer.global_step == 3

    method, trainer, ended = run(
        phase("one", epochs=3), flops=1e9, scores=rising(), callbacks=(Stop(),)
    )
    assert trainer.global_step == 3
    assert ended.summary(trainer, method)["stopped_by"] == "trainer"


def test_accumulated_gradients_are_not_left_behind(run: Run) -> None:
    """A step ends with the second, fourth and fifth batch of an epoch."""

    class Accumulate(Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            trainer.accumulate_grad_batches = 2

    method, trainer, _ = run(
        phase("one", epochs=3), flops=2.5 * FIRST, scores=rising(), callbacks=(Accumulate(),)
    )
    assert len(method.steps) == 4
    assert trainer.global_step == 2
    assert not same(method.steps[-1][1], method.weights())


class Killed(Exception):
    """Ends a run where a power cut might."""


class KillAt(Callback):
    """Raises after the batch of a global step, or within an estimate."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *rest: object) -> None:
        if trainer.global_step == self.step:
            raise Killed


MIXED = [
    phase("warm_up", "first", "second", epochs=1),
    *em(2, steps=4),
    phase("tail", "second", estimate=True, epochs=2),
]
# warm_up to step 5, em_1 to 9, em_2 to 13, tail.
BEFORE_TAIL = 5 * BOTH + 2 * 5 * ESTIMATE + 8 * FIRST


@pytest.mark.parametrize(
    ("flops", "last", "ended_in"),
    [
        (3 * BOTH, 3, "warm_up"),
        (5 * BOTH + 5 * ESTIMATE + 2 * FIRST, 7, "em_1"),
        (5 * BOTH + 2 * 5 * ESTIMATE + 6 * FIRST, 11, "em_2"),
        (BEFORE_TAIL + 2 * ESTIMATE, 13, "tail"),
        (BEFORE_TAIL + 5 * ESTIMATE + 3 * FIRST, 16, "tail"),
    ],
)
@pytest.mark.parametrize("share", [0.35, 0.8])
def test_killed_and_resumed(run: Run, flops: float, last: int, ended_in: str, share: float) -> None:
    """It goes on counting: the same steps, the same books and the same weights, to the bit."""
    whole, trainer, ended = run(*MIXED, flops=flops, folder="whole", scores=rising())
    books = run.ledger.totals()
    assert trainer.global_step == last
    assert ended.summary(trainer, whole)["budget"]["phase"] == ended_in
    with pytest.raises(Killed):
        run(
            *MIXED,
            flops=flops,
            scores=rising(),
            callbacks=(KillAt(max(1, int(share * last))),),
        )
    method, trainer, ended = run(*MIXED, flops=flops, scores=rising(), resume=True)
    assert trainer.global_step == last
    assert ended.reached == "flops"
    assert same(method.weights(), whole.weights())
    assert same(run.saved(), run.saved("whole"))
    assert same(run.saved(name="last.ckpt"), run.saved("whole", "last.ckpt"))
    found = run.ledger.totals()
    exact = [name for name in books if name.split("/")[0] in ("tokens", "flops")]
    assert {name: found[name] for name in exact} == {name: books[name] for name in exact}


@pytest.mark.parametrize("flops", [3 * BOTH, BEFORE_TAIL + ESTIMATE, BEFORE_TAIL + 1e5])
def test_resumed_with_nothing_left(run: Run, flops: float) -> None:
    """It ends as it had ended, and says the same."""
    method, trainer, ended = run(*MIXED, flops=flops, scores=rising())
    told = ended.summary(trainer, method)
    again, trainer, ended = run(*MIXED, flops=flops, scores=rising(), resume=True)
    assert again.steps == []
    assert again.validations == []
    assert again.estimated == []
    assert ended.summary(trainer, again) == told
    assert same(again.weights(), method.weights())
    assert same(run.saved(), method.weights())


@pytest.mark.parametrize(("cut_at", "epochs_left"), [(1, 3), (5, 2), (7, 2), (12, 1)])
def test_a_larger_budget_goes_on(run: Run, cut_at: int, epochs_left: int) -> None:
    """The epoch that it was cut in does not count, not even the last."""
    phases = [phase("one", epochs=3), phase("two", "second", epochs=1)]
    run(*phases, flops=cut_at * FIRST, scores=rising())
    method, trainer, ended = run(*phases, flops=1e9, scores=rising(), resume=True)
    steps = epochs_left * STEPS
    assert [name for name, _ in method.steps] == ["one"] * steps + ["two"] * STEPS
    assert trainer.global_step == cut_at + steps + STEPS
    assert ended.summary(trainer, method)["stopped_by"] == "phases"
    assert same(run.saved(), method.weights())


def test_best_weights_of_a_run_that_went_on_without_validation(run: Run) -> None:
    """Not those with which it was cut."""

    class Blind(Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            trainer.limit_val_batches = 0

    run(phase("one", epochs=2), flops=3 * FIRST, callbacks=(Blind(),))
    cut = run.saved()
    method, _, _ = run(phase("one", epochs=2), flops=1e9, callbacks=(Blind(),), resume=True)
    assert method.validations == []
    assert not same(cut, method.weights())
    assert same(run.saved(), method.weights())


def test_what_counts_as_spent() -> None:
    ledger = CostLedger()
    ledger.phases = {
        "one": {"seconds/train": 1.0, "seconds/evaluate": 50.0, "tokens/generator/train": 7.0},
        "two": {
            "seconds/estimate": 2.0,
            "seconds/refresh": 4.0,
            "seconds/analysis": 50.0,
            "tokens/generator/estimate": 8.0,
            "tokens/generator/evaluate": 50.0,
            "tokens/retriever/refresh": 50.0,
            "flops/refresh": 3.0,
            "flops/evaluate": 50.0,
            "flops": 53.0,
        },
        "test": {"seconds/evaluate": 50.0, "seconds/refresh": 50.0, "flops/refresh": 50.0},
    }
    assert ledger.spent() == {"seconds": 7.0, "generator_tokens": 15.0, "flops": 3.0}


@pytest.mark.parametrize("name", ["seconds", "generator_tokens", "flops"])
@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_no_limits(name: str, limit: float) -> None:
    with pytest.raises(UserError, match=rf"budget\.{name} is {limit}; legal: above 0, or null"):
        BudgetConfig(**{name: limit})


def test_orders_that_contradict_each_other(run: Run) -> None:
    class AtLeast(Callback):
        def setup(self, trainer, pl_module, stage) -> None:
            trainer.fit_loop.epoch_loop.min_steps = 10

    with pytest.raises(UserError, match=r"budget\.flops would end the training, .*min_steps"):
        run(phase("one", epochs=3), flops=FIRST, callbacks=(AtLeast(),))
    method, _, _ = run(phase("one", epochs=3), callbacks=(AtLeast(),), scores=rising())
    assert len(method.steps) == 3 * STEPS


def test_books_are_needed(fit) -> None:
    with pytest.raises(ValueError, match="a Budget reads the books of a CostLedger"):
        fit(phase("one", epochs=1), callbacks=[Budget(BudgetConfig(seconds=1.0))], scores=[0.1])


@pytest.mark.parametrize(
    ("flops", "by", "cut_in", "kept"),
    [
        (3 * FIRST, "flops", "one", 3),  # in the epoch with which `one` would have ended
        (5 * FIRST, "flops", "one", 5),  # between the phases
        (5 * FIRST + 2 * ESTIMATE, "flops", "two", 5),
        (5 * FIRST + 5 * ESTIMATE + 2 * FIRST, "flops", "two", 7),
        (1e9, "phases", None, 10),
    ],
)
def test_summary_of_a_run(
    run: Run, tmp_path: Path, flops: float, by: str, cut_in: str | None, kept: int
) -> None:
    """What ended it, in which phase, and the validation whose weights it kept."""
    run(
        phase("one", epochs=1),
        phase("two", estimate=True, epochs=1),
        flops=flops,
        callbacks=(RunFiles(tmp_path / "run", {}),),
        scores=rising(),
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == by
    assert summary["budget"]["limits"] == {"flops": flops}
    assert summary["budget"]["spent"] == run.ledger.spent()
    assert summary["budget"]["phase"] == cut_in
    assert summary["validation"]["step"] == kept


def test_an_estimate_that_was_cut_costs_no_epoch(run: Run) -> None:
    """Of phases that are all counted in epochs: each has all of its epochs in the end."""
    phases = [phase("one", estimate=True, epochs=2), phase("two", "second", epochs=1)]
    run(*phases, flops=ESTIMATE, scores=rising())
    method, trainer, ended = run(*phases, flops=1e9, scores=rising(), resume=True)
    assert [name for name, _ in method.steps] == ["one"] * 2 * STEPS + ["two"] * STEPS
    assert ended.summary(trainer, method)["stopped_by"] == "phases"

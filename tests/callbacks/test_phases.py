"""Phases run in order, train what they name, keep their best weights, and end when they must."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_rag.errors import UserError
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Bank, Phase

STEPS = 5  # batches in an epoch

State = dict[str, Tensor]
Make = Callable[[Method], Phase]


def phase(name: str, *trains: str, estimate: bool = False, **settings: object) -> Make:
    def make(method: Method) -> Phase:
        function = method.estimate if estimate else None
        return Phase(name, trains, method.loss, estimate=function, **settings)

    return make


def moved(one: State, other: State) -> set[str]:
    """The groups of which some weight differs."""
    return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}


def same(one: State, other: State) -> bool:
    return not moved(one, other)


def best(folder: Path, name: str = "best.ckpt") -> State:
    state: State = torch.load(folder / "run" / "checkpoints" / name, weights_only=True)
    return state["state_dict"]


def test_order_and_freezing(fit) -> None:
    method, trainer = fit(
        phase("one", "first", epochs=2),
        phase("two", "second", epochs=1),
        phase("three", "first", "second", epochs=1),
    )
    names = [name for name, _ in method.steps]
    assert names == ["one"] * 2 * STEPS + ["two"] * STEPS + ["three"] * STEPS
    assert trainer.global_step == 4 * STEPS
    before = [weights for _, weights in method.steps]
    trained = [moved(one, other) for one, other in pairwise(before)]
    # Where a phase ends, its best weights come back: look inside the phases only.
    assert trained[: 2 * STEPS - 1] == [{"first"}] * (2 * STEPS - 1)
    assert trained[2 * STEPS : 3 * STEPS - 1] == [{"second"}] * (STEPS - 1)
    assert trained[3 * STEPS :] == [{"first", "second"}] * (STEPS - 1)
    # Not a bit of the frozen group moves, whatever AdamW's decay and moments would do.
    frozen = [weights["second.linear.weight"] for weights in before[: 2 * STEPS + 1]]
    assert all(torch.equal(frozen[0], weight) for weight in frozen)


def test_frozen_groups_have_no_dropout(fit) -> None:
    modes: list[tuple[bool, bool]] = []

    def watching(method: Method) -> Phase:
        def loss(batch):
            modes.append((method.first.training, method.second.training))
            return method.loss(batch)

        return Phase("one", ("second",), loss, epochs=1)

    fit(watching)
    assert modes == [(False, True)] * STEPS


def test_best_weights_start_the_next_phase(fit, tmp_path: Path) -> None:
    method, _ = fit(
        phase("one", "first", epochs=3, monitor="score"),
        phase("two", "second", epochs=3, monitor="score"),
        scores=[0.1, 0.9, 0.2, 0.5, 0.4, 0.4],
    )
    assert len(method.validations) == 6
    assert not same(method.validations[1], method.validations[2])
    assert same(method.steps[3 * STEPS][1], method.validations[1])
    assert same(best(tmp_path, "one-best.ckpt"), method.validations[1])
    assert same(best(tmp_path), method.validations[3])
    assert same(method.weights(), method.validations[3])


def test_smallest_is_best_where_the_phase_says_so(fit, tmp_path: Path) -> None:
    method, _ = fit(
        phase("one", "first", epochs=3, monitor="score", mode="min"), scores=[0.3, 0.1, 0.2]
    )
    assert same(best(tmp_path), method.validations[1])


def test_first_of_equal_scores_counts(fit, tmp_path: Path) -> None:
    method, _ = fit(phase("one", "first", epochs=3, monitor="score"), scores=[0.1, 0.2, 0.2])
    assert same(best(tmp_path), method.validations[1])


@pytest.mark.parametrize(
    ("patience", "epochs"), [(0, 3), (1, 3), (2, 4), (3, 5), (4, 8), (None, 8)]
)
def test_patience(fit, patience: int | None, epochs: int) -> None:
    """Best at the second validation, no better for three, then better again."""
    method, trainer = fit(
        phase("one", "first", epochs=8, monitor="score", patience=patience),
        scores=[0.1, 0.5, 0.4, 0.5, 0.3, 0.6, 0.1, 0.2],
    )
    assert len(method.validations) == epochs
    assert trainer.should_stop


def test_patience_ends_one_phase_only(fit) -> None:
    method, _ = fit(
        phase("one", "first", epochs=9, monitor="score", patience=0),
        phase("two", "second", epochs=2, monitor="score", patience=0),
        scores=[0.9, 0.8, 0.1, 0.2],
    )
    names = [name for name, _ in method.steps]
    assert names == ["one"] * 2 * STEPS + ["two"] * 2 * STEPS


def test_patience_ends_a_phase_within_an_epoch(fit) -> None:
    """Validated at every step: no better after the second, and so no further step after it."""
    method, trainer = fit(
        phase("one", "first", epochs=9, monitor="score", patience=1),
        phase("two", "second", epochs=9, monitor="score", patience=1),
        scores=[0.9, 0.8, 0.2, 0.1],
        validate_every=1,
    )
    assert [name for name, _ in method.steps] == ["one"] * 2 + ["two"] * 2
    assert same(method.weights(), method.validations[2])
    assert method.phase_index == 2
    assert trainer.should_stop


def test_steps_end_within_an_epoch(fit) -> None:
    """A phase of epochs gets what is left of this one besides its own."""
    method, trainer = fit(
        phase("one", "first", steps=3),
        phase("two", "second", steps=4),
        phase("three", "first", epochs=1),
    )
    names = [name for name, _ in method.steps]
    assert names == ["one"] * 3 + ["two"] * 4 + ["three"] * (2 * STEPS - 7 + STEPS)
    assert method.phase_start == 7
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)
    assert trainer.should_stop


def test_steps_end_with_an_epoch(fit) -> None:
    """The next phase loses no epoch by beginning at the last batch."""
    method, _ = fit(phase("one", "first", steps=STEPS), phase("two", "second", epochs=2))
    assert [name for name, _ in method.steps] == ["one"] * STEPS + ["two"] * 2 * STEPS


def test_rates_start_afresh_in_every_phase(fit) -> None:
    rates: list[tuple[str, float]] = []

    def watching(name: str, steps: int) -> Make:
        def make(method: Method) -> Phase:
            def loss(batch):
                rates.append((name, method.trainer.optimizers[0].param_groups[0]["lr"]))
                return method.loss(batch)

            return Phase(name, ("first",), loss, steps=steps)

        return make

    fit(watching("one", 4), watching("two", 2))
    one = [rate for name, rate in rates if name == "one"]
    two = [rate for name, rate in rates if name == "two"]
    assert one == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert two == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    ("limit", "steps"), [({"max_steps": 3}, 3), ({"max_epochs": 2}, 2 * STEPS)]
)
def test_the_trainers_limits_cap_the_run(fit, tmp_path: Path, limit, steps: int) -> None:
    method, trainer = fit(phase("one", "first", epochs=9), **limit)
    assert trainer.global_step == steps
    assert same(best(tmp_path), method.weights())


def test_cut_short_ends_with_the_best_weights(fit, tmp_path: Path) -> None:
    method, _ = fit(
        phase("one", "first", epochs=9, monitor="score"), scores=[0.3, 0.9, 0.1], max_epochs=3
    )
    assert same(method.weights(), method.validations[1])
    assert same(best(tmp_path), method.validations[1])


def test_estimate_fills_the_bank_once(fit) -> None:
    method, _ = fit(phase("one", "first", estimate=True, epochs=2))
    assert method.estimated == list(range(40))
    rows = torch.tensor([3, 0, 39])
    assert method.bank.get("doubled", rows).tolist() == [6, 0, 78]


def test_estimate_of_the_next_phase_replaces_the_bank(fit) -> None:
    method, _ = fit(
        phase("one", "first", estimate=True, steps=2), phase("two", "first", estimate=True, steps=2)
    )
    assert method.estimated == [*range(40), *range(40)]


def test_unknown_monitor(fit) -> None:
    with pytest.raises(UserError, match=r"phase 'one' monitors 'val/f2', .*val/accuracy"):
        fit(phase("one", "first", epochs=1, monitor="f2"))


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}, {"epochs": 0}, {"steps": -1}])
def test_length_of_a_phase(length: dict[str, int]) -> None:
    with pytest.raises((ValueError, UserError), match="phase 'one'"):
        Phase("one", ("first",), lambda batch: batch, **length)


def test_unknown_group(fit) -> None:
    with pytest.raises(ValueError, match=r"phases train \['third'\]; legal: \['first', 'second'\]"):
        fit(phase("one", "third", epochs=1))


def test_bank_of_nothing() -> None:
    with pytest.raises(KeyError, match="the bank holds no 'scores'; it holds nothing"):
        Bank().get("scores", torch.tensor([0]))

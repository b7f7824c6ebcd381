"""Phases run in order, train what they name, keep their best weights, and end when they must."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_rag.callbacks import phases
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


def test_estimate_without_a_bar_says_how_far_it_is(
    fit, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(phases, "TELL_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="lightning_rag"):
        fit(phase("one", "first", estimate=True, steps=1))
    told = [text for text in caplog.messages if "estimate" in text]
    assert told[0] == "phase 'one': estimate over the training queries"
    assert told[1:] == [f"phase 'one': estimate, batch {n} of {STEPS}" for n in range(1, 6)]


def test_estimate_of_the_next_phase_replaces_the_bank(fit) -> None:
    method, _ = fit(
        phase("one", "first", estimate=True, steps=2), phase("two", "first", estimate=True, steps=2)
    )
    assert method.estimated == [*range(40), *range(40)]


def starting(name: str, start_from: str | None, seen: dict[str, State], **settings) -> Make:
    """A phase that keeps the weights of its estimate in `seen`."""

    def make(method: Method) -> Phase:
        def estimate(batch):
            seen.setdefault(name, method.weights())
            return method.estimate(batch)

        return Phase(
            name,
            ("first", "second"),
            method.loss,
            estimate=estimate,
            start_from=start_from,
            monitor="score",
            **settings,
        )

    return make


def test_start_from_the_best_of_an_earlier_phase(fit, tmp_path: Path) -> None:
    """The estimate is made with the weights as they are, the training starts from the others."""
    seen: dict[str, State] = {}
    method, _ = fit(
        phase("warm_up", "first", epochs=2, monitor="score"),
        starting("em_1", None, seen, epochs=1),
        starting("em_2", "warm_up", seen, epochs=1),
        scores=[0.9, 0.1, 0.2, 0.3],
    )
    assert same(seen["em_1"], method.validations[0])
    assert same(seen["em_2"], method.validations[2])
    assert same(method.steps[3 * STEPS][1], method.validations[0])
    assert not same(method.validations[0], method.validations[2])
    assert same(best(tmp_path), method.validations[3])


@pytest.mark.parametrize("steps", [3, STEPS])
def test_start_from_a_phase_that_was_not_validated(fit, tmp_path: Path, steps: int) -> None:
    """Its last weights count, whether it ends within an epoch or with one."""
    seen: dict[str, State] = {}
    method, _ = fit(
        phase("warm_up", "first", steps=steps),
        starting("em_1", None, seen, steps=2),
        starting("em_2", "warm_up", seen, steps=4),
        scores=dict.fromkeys(range(30), 0.5),
        check_val_every_n_epoch=3,
    )
    assert method.steps[steps][0] == "em_1"
    assert same(seen["em_1"], method.steps[steps][1])
    assert same(seen["em_2"], method.steps[steps + 1][1]) is False
    assert same(method.steps[steps + 2][1], method.steps[steps][1])
    assert same(best(tmp_path, "warm_up-best.ckpt"), method.steps[steps][1])


def test_only_weights_that_are_asked_for_are_saved(fit, tmp_path: Path) -> None:
    fit(phase("one", "first", steps=2), phase("two", "first", steps=2))
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["best.ckpt"]


def test_start_from_makes_the_index_stale(fit) -> None:
    ages: list[int] = []

    def aging(method: Method) -> Phase:
        method.refreshed_at = 2

        def loss(batch):
            ages.append(method.refreshed_at)
            return method.loss(batch)

        return Phase("three", ("first",), loss, steps=1, start_from="one")

    fit(phase("one", "first", steps=1), phase("two", "first", steps=1), aging)
    assert ages == [-1]


def test_rehearsal_with_all_that_a_phase_can_have(fit, tmp_path: Path) -> None:
    """Two steps reach the second phase, whose weights to start from were never written."""
    told: list[Mapping[str, Tensor]] = []

    def make(method: Method) -> Phase:
        def summarize(rows: Mapping[str, Tensor]) -> dict[str, float]:
            told.append(rows)
            return {"mean": float(rows["doubled"].float().mean())}

        return Phase(
            "two",
            ("first",),
            method.loss,
            estimate=method.estimate,
            summarize=summarize,
            steps=1,
            start_from="one",
            series="em",
            series_patience=1,
        )

    method, _ = fit(phase("one", "first", steps=1, series="em"), make, fast_dev_run=2)
    assert [name for name, _ in method.steps] == ["one", "two"]
    assert told[0]["doubled"].shape == (40,)
    assert not (tmp_path / "run").exists()


def test_a_rehearsal_leaves_the_weights_of_a_run_alone(fit, tmp_path: Path) -> None:
    """It neither overwrites nor reads what lies in the folder."""
    folder = tmp_path / "run" / "checkpoints"
    fit(phase("one", "first", epochs=1), phase("two", "second", steps=1))
    (folder / "one-best.ckpt").write_bytes(b"damaged")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.keys() == {"best.ckpt", "one-best.ckpt"}
    fit(
        phase("one", "first", steps=1),
        phase("two", "first", steps=1, start_from="one"),
        fast_dev_run=2,
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def summarized(name: str, figures: Callable[[Mapping[str, Tensor]], dict[str, float]]) -> Make:
    return lambda method: Phase(
        name, ("first",), method.loss, estimate=method.estimate, summarize=figures, epochs=1
    )


def test_summary_of_an_estimate(fit, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def figures(rows: Mapping[str, Tensor]) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        return {"mean": float(rows["doubled"].float().mean()), "largest": rows["doubled"].max()}

    logger = CSVLogger(tmp_path, name="logs", version="")
    with caplog.at_level(logging.INFO, logger="lightning_rag"):
        fit(
            phase("one", "first", epochs=1),
            summarized("two", figures),
            summarized("three", lambda rows: {"largest": 1.0}),
            logger=logger,
        )
    lines = [line.split(",") for line in (tmp_path / "logs/metrics.csv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    told = [row for row in rows if row["estimate/largest"]]
    assert [int(row["step"]) for row in told] == [STEPS, 2 * STEPS]
    assert [float(row["estimate/largest"]) for row in told] == [78.0, 1.0]
    assert float(told[0]["estimate/mean"]) == sum(range(40)) * 2 / 40
    (line,) = [text for text in caplog.messages if "mean" in text]
    assert line == "phase 'two': estimate: mean 39, largest 78"


def test_a_summary_can_only_read_the_bank(fit) -> None:
    def meddle(rows):
        rows["doubled"] = torch.zeros(40)

    with pytest.raises(TypeError, match="does not support item assignment"):
        fit(summarized("one", meddle))


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

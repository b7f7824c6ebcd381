"""Checkpoints at steps that are validated too: a resumed run neither loses nor repeats anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_rag.callbacks.checkpoints import ResumePoint
from lightning_rag.callbacks.run_files import RunFiles
from lightning_rag.methods.base import Method
from lightning_rag.methods.phase import Phase

State = dict[str, Tensor]


class Killed(Exception):
    """Ends a run where a power cut might."""


class KillAt(Callback):
    """Raises in a hook at a global step, before a checkpoint that this hook would write."""

    def __init__(self, step: int, hook: str = "on_train_batch_end") -> None:
        self.step = step
        setattr(self, hook, self._kill)

    def _kill(self, trainer, *rest: object) -> None:
        if trainer.global_step == self.step:
            raise Killed


class Set(Callback):
    """Gives the trainer a setting that the fixture has no argument for."""

    def __init__(self, name: str, value: int) -> None:
        self.name = name
        self.value = value

    def setup(self, trainer, pl_module, stage) -> None:
        setattr(trainer, self.name, self.value)


def one(method: Method) -> Phase:
    return Phase("one", ("first",), method.loss, epochs=3, patience=2, monitor="score")


def two(method: Method) -> Phase:
    return Phase("two", ("first", "second"), method.loss, epochs=3, patience=2, monitor="score")


def six_steps(method: Method) -> Phase:
    return Phase("six", ("second",), method.loss, steps=6, monitor="score")


def same(ours: State, theirs: State) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in theirs)


def saved(folder: Path) -> dict[str, State]:
    files = (folder / "checkpoints").glob("*.ckpt")
    return {file.name: torch.load(file, weights_only=True)["state_dict"] for file in files}


def curve(folder: Path) -> object:
    path = folder / "metrics.json"
    return json.loads(path.read_text())["validation"] if path.exists() else None


@pytest.fixture
def check(fit, tmp_path: Path):
    """Kill, resume, kill again there, resume; compare all steps, validations and files."""

    def run(name: str, every: int, *extra: Callback, **settings: object):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        last = folder / "checkpoints" / "last.ckpt"
        return fit(
            *settings.pop("phases", (one, two)),
            **{"validate_every": 2, **settings},
            folder=name,
            callbacks=[RunFiles(folder, {}), *extra, ResumePoint(folder / "checkpoints", every)],
            ckpt_path=last if last.exists() else None,
        )

    def start(
        every: int,
        kills: Sequence[tuple[KillAt, int]],
        *extra: Callback,
        **settings: object,
    ) -> None:
        whole, _ = run("whole", every, *extra, **settings)
        for number, (kill, kept) in enumerate(kills):
            name = f"killed-{number}"
            folder = tmp_path / name
            for _ in range(2):
                with pytest.raises(Killed):
                    run(name, every, *extra, kill, **settings)
                last = folder / "checkpoints" / "last.ckpt"
                content = torch.load(last, weights_only=True) if last.exists() else {}
                assert content.get("global_step", 0) == kept, name
            method, _ = run(name, every, *extra, **settings)
            # What follows the checkpoint, each once, and with the same weights.
            steps = whole.steps[-len(method.steps) :]
            for (phase, ours), (expected, theirs) in zip(method.steps, steps, strict=True):
                assert phase == expected
                assert same(ours, theirs), name
            assert same(method.weights(), whole.weights()), name
            files, expected_files = saved(folder), saved(tmp_path / "whole")
            assert files.keys() == expected_files.keys()
            assert {"last.ckpt", "best.ckpt"} <= files.keys()
            for file in files:
                assert same(files[file], expected_files[file]), (name, file)
            assert curve(folder) == curve(tmp_path / "whole")

    return start


def test_a_checkpoint_waits_for_the_validation_of_its_step(check) -> None:
    """Five batches an epoch, validated after each second: at steps 2, 4, 7, 9, 12, 14, 17.

    `one` is best at 2, and its patience ends it at 7; `two` is best at 12, and ends at 17.
    """
    check(
        2,
        [
            (KillAt(2, "on_validation_end"), 0),
            (KillAt(3), 2),
            (KillAt(13), 12),
            (KillAt(15), 14),
        ],
        scores={2: 0.9, 4: 0.1, 7: 0.2, 9: 0.3, 12: 0.8, 14: 0.4, 17: 0.5},
    )


def test_the_validation_with_which_the_steps_of_the_last_phase_end(check) -> None:
    """At step 6, the first of its epoch: Lightning validates because the training stops."""
    check(
        2,
        [(KillAt(6, "on_validation_end"), 5), (KillAt(6, "on_train_epoch_end"), 5)],
        phases=(six_steps,),
        scores={2: 0.1, 4: 0.2, 6: 0.3},
    )


def test_patience_that_ends_the_training_at_a_checkpoint(check) -> None:
    """After the validation of step 12 only the end of the epoch is left."""
    check(
        2,
        [(KillAt(12, "on_train_epoch_end"), 10)],
        phases=(two,),
        scores={2: 0.1, 4: 0.2, 7: 0.9, 9: 0.3, 12: 0.4},
    )


@pytest.mark.parametrize("validate_every", [2, 3])
def test_accumulated_gradients_are_not_lost(check, validate_every: int) -> None:
    """A step ends with the second, fourth and fifth batch; no checkpoint between these."""
    check(
        1,
        [(KillAt(2), 1), (KillAt(5), 4)],
        Set("accumulate_grad_batches", 2),
        phases=(two,),
        scores={1: 0.9, 2: 0.1, 4: 0.95, 5: 0.3, 7: 0.8, 8: 0.4},
        validate_every=validate_every,
    )


def test_epochs_without_validation(check) -> None:
    """Nothing to wait for in the first and third epoch; steps 7 and 9 are validated."""
    check(
        2,
        [(KillAt(3), 2), (KillAt(9), 8), (KillAt(13), 12)],
        phases=(two,),
        scores={7: 0.9, 9: 0.3},
        check_val_every_n_epoch=2,
    )


def test_batches_counted_over_all_epochs(check) -> None:
    """Steps 3, 6, 9, 12 and 15 are validated, at 6 the first batch of an epoch."""
    check(
        2,
        [(KillAt(3), 2), (KillAt(7), 6), (KillAt(13), 12)],
        phases=(two,),
        scores={3: 0.1, 6: 0.9, 9: 0.3, 12: 0.95, 15: 0.4},
        validate_every=3,
        check_val_every_n_epoch=None,
    )


def test_no_validation_at_all(check) -> None:
    check(2, [(KillAt(3), 2)], Set("limit_val_batches", 0), phases=(six_steps,))
